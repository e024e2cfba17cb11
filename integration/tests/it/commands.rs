//! The commands on containerd's own store: what they write there is found again, outlives a garbage collection, and
//! gets to a registry.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use integration::containerd::{Containerd, Options};
use integration::images::{Image, Layer, PushedImage, Tar, push_image, push_index, tar::Entry};
use integration::lab::Lab;
use integration::machine::{binaries, long, skip};
use integration::parts;
use integration::process::run_measured;
use integration::registry::Registry;
use oci::image::media_type::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST};
use oci::{Descriptor, Digest, Platform};
use serde_json::json;
use sha2::Digest as _;

use crate::image::{SMALL, noise};

const LIMIT: Duration = Duration::from_secs(120);

/// A containerd with an image in it, and our command beside it.
struct Bench {
    lab: Lab,
    registry: Registry,
    containerd: Containerd,
    pushed: PushedImage,
}

impl Bench {
    fn new(name: &str) -> Result<Bench> {
        Bench::with(name, Options::default())
    }

    fn with(name: &str, options: Options) -> Result<Bench> {
        let lab = Lab::new(name)?;
        let registry = Registry::start(&lab)?;
        let containerd = Containerd::start_with(&lab, options)?;
        let pushed = push_image(registry.host(), "app:plain", &Image::new(layers()))?;
        containerd.pull(&pushed.reference, "overlayfs")?;
        Ok(Bench { lab, registry, containerd, pushed })
    }

    /// `soci` on this containerd; what it printed.
    fn soci(&self, words: &[&str]) -> Result<String> {
        self.lab.run(self.command(words)?, LIMIT)
    }

    /// What it says where it must fail.
    fn refused(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words)?.output()?;
        ensure!(!output.status.success(), "{words:?} should have failed");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.lab.command(&binaries()?.soci);
        command.arg("--address").arg(self.containerd.address());
        command.args(["--namespace", self.containerd.namespace(), "--root"]);
        command.arg(self.lab.folder("root")?).args(words);
        Ok(command)
    }

    /// containerd collects what nothing holds: the end of a lease does that, and waits for it.
    fn collect_garbage(&self) -> Result<()> {
        let id = self.containerd.ctr(&["leases", "create"])?;
        self.containerd.ctr(&["leases", "rm", "--sync", id.trim()]).map(drop)
    }
}

fn hello() -> Vec<u8> {
    noise(7, 200_000)
}

fn layers() -> Vec<Layer> {
    let first = Tar::new([Entry::directory("a"), Entry::file("a/hello", hello())]);
    let second = Tar::new([Entry::file("other", noise(8, 300_000)), Entry::hard_link("same", "other")]);
    vec![Layer::gzip(&first.bytes()), Layer::gzip(&second.bytes())]
}

/// The last words of the lines that begin so.
fn ends<'a>(said: &'a str, start: &str) -> Vec<&'a str> {
    let lines = said.lines().filter(|line| line.starts_with(start));
    lines.filter_map(|line| line.rsplit(' ').next()).collect()
}

fn create(bench: &Bench) -> Result<(String, Vec<String>)> {
    let words = [&["create"], SMALL, &[&bench.pushed.reference]].concat();
    let said = bench.soci(&words)?;
    let index = ends(&said, "platform ").first().context("an index was made")?.to_string();
    let ztocs: Vec<String> = ends(&said, "layer ").iter().map(|&ztoc| ztoc.to_owned()).collect();
    ensure!(ztocs.len() == 2, "{said}");
    Ok((index, ztocs))
}

#[test]
fn containerd_what_is_created_is_found_again() -> Result<()> {
    let bench = Bench::new("commands")?;
    let (index, ztocs) = create(&bench)?;
    bench.collect_garbage()?;

    let list = bench.soci(&["index", "ls"])?;
    let row = list.lines().nth(1).context("an index is listed")?;
    for word in [index.as_str(), &bench.pushed.reference, "linux/amd64", "v1", "s ago"] {
        ensure!(row.contains(word), "{word}: {list}");
    }
    let reference = bench.pushed.reference.as_str();
    for words in [&["-q"][..], &["--ref", reference, "-q"], &["-p", "linux/amd64", "-q"]] {
        let listed = bench.soci(&[&["index", "list"], words].concat())?;
        ensure!(listed.trim() == index, "{words:?}: {listed}");
    }
    ensure!(bench.soci(&["index", "ls", "-q", "-p", "linux/arm64"])?.is_empty());
    ensure!(bench.soci(&["index", "ls", "--json"])?.contains("\"manifest_version\": \"v1\""));
    let shown = bench.soci(&["index", "info", &index])?;
    ensure!(ztocs.iter().all(|ztoc| shown.contains(ztoc)), "{shown}");
    let listed = bench.soci(&["ztoc", "ls", "-q", "--image-ref", reference])?;
    let listed: BTreeSet<&str> = listed.lines().collect();
    ensure!(listed == ztocs.iter().map(String::as_str).collect(), "{listed:?}");
    ensure!(bench.soci(&["ztoc", "ls", "--ztoc-digest", &ztocs[0]])?.lines().count() == 2);
    ensure!(bench.soci(&["ztoc", "ls", "--json"])?.contains("\"span_size\": 65536"));

    // The ztoc of the first layer, whichever was done first.
    let info = |ztoc: &String| bench.soci(&["ztoc", "info", ztoc]);
    let first = if info(&ztocs[0])?.contains("a/hello") { &ztocs[0] } else { &ztocs[1] };
    let file = bench.lab.path().join("hello");
    bench.soci(&["ztoc", "get-file", "-o", &file.to_string_lossy(), first, "a/hello"])?;
    ensure!(fs::read(&file)? == hello());

    let again = bench.soci(&[&["create"], SMALL, &[reference]].concat())?;
    ensure!(again.matches(" (already exists)").count() == 2, "{again}");
    let forced = bench.soci(&[&["create", "--force"], SMALL, &[reference]].concat())?;
    ensure!(!forced.contains("already exists") && ends(&forced, "platform ") == [index.as_str()], "{forced}");
    let verified = bench.soci(&["verify", reference])?;
    ensure!(verified.matches("true, byte for byte").count() == 2, "{verified}");

    for (words, why) in [
        (&["create", "nothing/here:1"][..], "not found; see --namespace"),
        (&["index", "info", &ztocs[0]], "is of ztoc not SOCI index"),
        (&["ztoc", "info", &index], "belongs to a SOCI index"),
        (&["index", "rm", &ztocs[0]], "does not correspond to an index"),
        (&["prefetch", "info", &ztocs[0]], "is not a prefetch artifact (type: soci_layer)"),
        (&["create", "-p", "linux/s390x", reference], "image manifest for linux/s390x: not found"),
    ] {
        let said = bench.refused(words)?;
        ensure!(said.contains(why), "{words:?}: {said}");
    }
    bench.soci(&["index", "rm", &index])?;
    ensure!(bench.soci(&["index", "ls", "-q"])?.is_empty());
    let gone = bench.refused(&["index", "info", &index])?;
    ensure!(gone.contains("couldn't retrieve artifact for"), "{gone}");
    Ok(())
}

#[test]
fn containerd_the_list_is_made_anew() -> Result<()> {
    let bench = Bench::new("rebuild")?;
    create(&bench)?;
    let converted = format!("{}/app:soci", bench.registry.host());
    let words = [&["convert", "--prefetch-file", "a/hello"], SMALL, &[&bench.pushed.reference, &converted]];
    bench.soci(&words.concat())?;
    let lists = |kind: &'static str| -> Result<BTreeSet<String>> {
        let said = bench.soci(&[kind, "ls", "--json"])?;
        let times = |line: &&str| !line.contains("\"created\"") && !line.contains("\"CreatedAt\"");
        Ok(said.lines().filter(times).map(str::to_owned).collect())
    };
    let before = [lists("index")?, lists("ztoc")?, lists("prefetch")?];
    let spans = before[2].iter().find_map(|line| line.trim().strip_prefix("\"TotalSpans\": "));
    let spans: i64 = spans.context("an artifact is listed")?.trim_end_matches(',').parse()?;
    ensure!((2..=4).contains(&spans), "200 kB lie in {spans} spans of 64 KiB and more");
    let list = bench.lab.path().join("root/artifacts");
    let file = fs::read_dir(&list)?.flatten().find(|e| e.path().extension().is_some_and(|e| e == "json"));
    fs::write(file.context("there is a list")?.path(), "nonsense")?;
    let broken = bench.refused(&["index", "ls"])?;
    ensure!(broken.contains("soci rebuild-db makes it anew"), "{broken}");
    bench.soci(&["rebuild-db"])?;
    ensure!([lists("index")?, lists("ztoc")?, lists("prefetch")?] == before);
    // What was only found may come from another tool: it is built again, and then known.
    for known in [0, 2] {
        let said = bench.soci(&[&["create"], SMALL, &[&bench.pushed.reference]].concat())?;
        ensure!(said.matches(" (already exists)").count() == known, "{known}: {said}");
    }
    Ok(())
}

/// Of a layer of many spans: containerd takes no message as long as its ztoc.
#[test]
fn containerd_a_ztoc_longer_than_a_message() -> Result<()> {
    let bench = Bench::new("long-ztoc")?;
    let tar = Tar::new([Entry::file("large", vec![7; 40 << 20])]);
    let layer = Layer::gzip_at(&tar.bytes(), Compression::none());
    let pushed = push_image(bench.registry.host(), "app:large", &Image::new(vec![layer]))?;
    bench.containerd.pull(&pushed.reference, "overlayfs")?;
    let said = bench.soci(&["create", "--min-layer-size", "0", "--span-size", "65535", &pushed.reference])?;
    let listed = bench.soci(&["ztoc", "ls"])?;
    let size = listed.lines().nth(1).and_then(|row| row.split_whitespace().nth(1)).context("a row")?;
    ensure!(size.parse::<u64>()? > 16 << 20, "{said} {listed}");
    ensure!(bench.soci(&["verify", &pushed.reference])?.contains("true, byte for byte"));
    Ok(())
}

/// Images that share their layers share their index: taking it out of the list breaks neither.
#[test]
fn containerd_an_index_of_two_images() -> Result<()> {
    let bench = Bench::new("shared")?;
    let other = Image::new(layers()).command(&["/other"]);
    let other = push_image(bench.registry.host(), "other:plain", &other)?.reference;
    bench.containerd.pull(&other, "overlayfs")?;
    let (one, two) = (format!("{}-soci", bench.pushed.reference), format!("{other}-soci"));
    for (from, to) in [(&bench.pushed.reference, &one), (&other, &two)] {
        bench.soci(&[&["convert"], SMALL, &[from, to]].concat())?;
    }
    let listed = |image: &str| bench.soci(&["index", "ls", "-q", "--ref", image]);
    ensure!(!listed(&one)?.is_empty() && listed(&one)? == listed(&two)?);
    bench.soci(&["index", "rm", "--ref", &one])?;
    ensure!(bench.soci(&["verify", &two])?.matches("true, byte for byte").count() == 2);
    Ok(())
}

/// Of an image of which one platform was pulled, the others' manifests may be there, and their layers not.
#[test]
fn containerd_partly_pulled() -> Result<()> {
    let bench = Bench::new("partly")?;
    let other = Tar::new([Entry::file("elsewhere", noise(9, 50_000))]);
    let arm = Image::new(vec![Layer::gzip(&other.bytes())]).platform(Platform::new("linux", "arm64", "v8"));
    let pushed = push_index(bench.registry.host(), "app:all", &[Image::new(layers()), arm])?;
    let pull = ["content", "fetch", "--plain-http", "--platform", "linux/amd64", "--all-metadata"];
    bench.containerd.ctr(&[&pull[..], &[&pushed.reference]].concat())?;
    let converted = format!("{}/app:all-soci", bench.registry.host());
    bench.soci(&[&["convert"], SMALL, &[&pushed.reference, &converted]].concat())?;
    ensure!(bench.soci(&["verify", "-p", "linux/amd64", &converted])?.contains("true, byte for byte"));
    let folder = format!("oci:{}", bench.lab.path().join("copy").display());
    let said =
        bench.refused(&[&["convert", "-p", "linux/amd64"], SMALL, &[&pushed.reference, &folder]].concat())?;
    ensure!(said.contains("pull every platform first"), "{said}");
    Ok(())
}

/// The same image by way of containerd, and from the registry: the same digest. What was written stays when the
/// source goes.
#[test]
fn containerd_converts_in_its_own_store() -> Result<()> {
    let bench = Bench::new("convert")?;
    let converted = format!("{}/app:soci", bench.registry.host());
    let reference = bench.pushed.reference.as_str();
    let said = bench.soci(&[&["convert"], SMALL, &[reference, &converted]].concat())?;
    let digest = said.lines().last().and_then(|line| line.rsplit_once('@')).context("an image was made")?.1;
    let (from, to) =
        (format!("docker://{reference}"), format!("docker://{}/other:soci", bench.registry.host()));
    let elsewhere = bench.soci(&[&["convert"], SMALL, &[&from, &to]].concat())?;
    ensure!(elsewhere.trim_end().ends_with(digest), "{said} {elsewhere}");
    let folder = format!("oci:{}", bench.lab.path().join("layout").display());
    let copied = bench.soci(&[&["convert"], SMALL, &[&converted, &folder]].concat())?;
    ensure!(copied.trim_end().ends_with(digest), "{copied}");

    bench.containerd.ctr(&["image", "rm", "--sync", reference])?;
    bench.collect_garbage()?;
    let listed = bench.containerd.ctr(&["image", "ls"])?;
    ensure!(listed.lines().any(|line| line.contains(&converted) && line.contains(digest)), "{listed}");
    let verified = bench.soci(&["verify", &converted])?;
    ensure!(verified.matches("true, byte for byte").count() == 2, "{verified}");
    ensure!(bench.soci(&["index", "ls"])?.contains("v2"));

    // And into containerd from outside, where nothing of it was before.
    bench.containerd.ctr(&["image", "rm", "--sync", &converted])?;
    bench.soci(&[&["convert"], SMALL, &[&folder, &converted]].concat())?;
    bench.collect_garbage()?;
    ensure!(bench.soci(&["verify", &converted])?.matches("true, byte for byte").count() == 2);
    for (to, why) in
        [("no-tag.example/app", "must be a tagged ref"), ("x.example/a:b@sha256:1", "parse digest")]
    {
        let said = bench.refused(&["convert", &converted, to])?;
        ensure!(said.contains(why), "{said}");
    }
    Ok(())
}

/// Of an image for several platforms: this machine's by default, all on request; each index held.
#[test]
fn containerd_platforms() -> Result<()> {
    let bench = Bench::new("platforms")?;
    let image = Image::new(layers());
    let arm = image.clone().platform(Platform::new("linux", "arm64", "v8"));
    let pushed = push_index(bench.registry.host(), "app:all", &[image, arm])?;
    let pull = ["image", "pull", "--plain-http", "--all-platforms", "--snapshotter", "overlayfs"];
    bench.containerd.ctr(&[&pull[..], &[&pushed.reference]].concat())?;
    let one = bench.soci(&[&["create"], SMALL, &[&pushed.reference]].concat())?;
    ensure!(ends(&one, "platform ").len() == 1, "{one}");
    let all = bench.soci(&[&["create", "--all-platforms"], SMALL, &[&pushed.reference]].concat())?;
    ensure!(ends(&all, "platform linux/arm64").len() == 1, "{all}");
    bench.collect_garbage()?;
    for index in ends(&all, "platform ") {
        bench.soci(&["index", "info", index])?;
    }
    let pushed_indexes = bench.soci(&["push", "-q", "--plain-http", "--all-platforms", &pushed.reference])?;
    ensure!(pushed_indexes.lines().collect::<Vec<_>>() == ends(&all, "platform "), "{pushed_indexes}");
    let from_registry = bench.soci(&["verify", &format!("docker://{}", pushed.reference)])?;
    ensure!(from_registry.matches("true, byte for byte").count() == 4, "{from_registry}");
    Ok(())
}

/// With `--content-store soci` containerd gets the image's layers only to read.
#[test]
fn containerd_a_store_of_our_own() -> Result<()> {
    let bench = Bench::new("own-store")?;
    let own = ["--content-store", "soci"];
    let said = bench.soci(&[&own[..], &["create"], SMALL, &[&bench.pushed.reference]].concat())?;
    let index = ends(&said, "platform ")[0];
    let blobs = bench.lab.path().join("root/content/blobs/sha256");
    ensure!(blobs.join(index.trim_start_matches("sha256:")).is_file());
    ensure!(!bench.containerd.ctr(&["content", "ls", "-q"])?.contains(index));
    ensure!(bench.soci(&["index", "ls", "-q"])?.is_empty());
    for words in [&["index", "info", index][..], &["verify", &bench.pushed.reference]] {
        bench.soci(&[&own[..], words].concat())?;
    }
    let pushed = bench.soci(&[&own[..], &["push", "-q", &bench.pushed.reference][..]].concat())?;
    ensure!(pushed.trim() == index, "{pushed}");
    bench.soci(&[&own[..], &["rebuild-db"]].concat())?;
    ensure!(bench.soci(&[&own[..], &["index", "ls", "-q"]].concat())?.trim() == index);
    bench.soci(&[&own[..], &["index", "rm", "--ref", &bench.pushed.reference]].concat())?;
    ensure!(!blobs.join(index.trim_start_matches("sha256:")).exists());
    Ok(())
}

/// nerdctl runs the `soci` it finds: create, then push, with flags of its own choice. On a containerd that is newer than
/// Debian 12's, and less patient with requests that lack something.
#[test]
fn containerd_nerdctl_pushes_with_our_command() -> Result<()> {
    let (nerdctl, binaries_2) = match (parts::nerdctl(), parts::containerd_2()) {
        (Ok(nerdctl), Ok(binaries)) => (nerdctl, binaries),
        (Err(error), _) | (_, Err(error)) => {
            skip(&format!("nerdctl push: {error:#}"));
            return Ok(());
        }
    };
    let options = Options { binaries: Some(binaries_2), ..Options::default() };
    let bench = Bench::with("nerdctl-push", options)?;
    let mut command = bench.lab.secluded(&nerdctl, &bench.lab.folder("home")?);
    command
        .arg("--address")
        .arg(bench.containerd.address())
        .args(["--namespace", bench.containerd.namespace()]);
    command.arg("--data-root").arg(bench.lab.folder("nerdctl")?).arg("--insecure-registry");
    command.args([
        "push",
        "--snapshotter",
        "soci",
        "--soci-min-layer-size",
        "0",
        "--soci-span-size",
        "65536",
    ]);
    command.arg(&bench.pushed.reference);
    let folder = binaries()?.soci.parent().context("the command lies in a folder")?.to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", folder.display()));
    bench.lab.run(command, LIMIT)?;
    let verified = bench.soci(&["verify", &format!("docker://{}", bench.pushed.reference)])?;
    ensure!(verified.matches("true, byte for byte").count() == 2, "{verified}");
    Ok(())
}

/// Bytes of memory that a conversion may take besides the ztocs that it makes, whatever the size of the layers.
const MEMORY_MAX: u64 = 64 << 20;

/// An OCI layout of two layers with one large file of zeros each, one of them gzipped: on the disk they take little.
fn large_layout(folder: &Path, bytes: u64) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let content = bytes / 512 * 512;
    let zeros = vec![0; 1 << 20];
    let header = Tar::new([Entry::file("large", [])]).bytes();
    let mut header = header[..512].to_vec();
    // The size by hand: twelve digits hold 8 GiB. The checksum counts its own place as blanks.
    header[124..136].copy_from_slice(format!("{content:011o}\0").as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let draft = blobs.join("draft");
    let mut plain = sha2::Sha256::new_with_prefix(&header);
    let mut gzip = GzEncoder::new(File::create(&draft)?, Compression::fast());
    gzip.write_all(&header)?;
    let mut left = content + 1024;
    while left > 0 {
        let part = &zeros[..usize::try_from(left.min(zeros.len() as u64))?];
        plain.update(part);
        gzip.write_all(part)?;
        left -= part.len() as u64;
    }
    gzip.finish()?.sync_all()?;
    let diff_id = Digest::from_sha256(plain.finalize().into());
    let gzipped = fs::read(&draft)?;
    let mut layers = vec![Descriptor::of(OCI_LAYER_GZIP, &gzipped)];
    fs::rename(&draft, blobs.join(layers[0].digest.hex()))?;
    let sparse = File::create(blobs.join(diff_id.hex()))?;
    (&sparse).write_all(&header)?;
    sparse.set_len(512 + content + 1024)?;
    layers.push(Descriptor::new(OCI_LAYER, diff_id, 512 + content + 1024));

    let write = |media_type: &str, value: &serde_json::Value| -> Result<Descriptor> {
        let bytes = serde_json::to_vec(value)?;
        let descriptor = Descriptor::of(media_type, &bytes);
        fs::write(blobs.join(descriptor.digest.hex()), bytes)?;
        Ok(descriptor)
    };
    let point = |to: &Descriptor| json!({"mediaType": to.media_type, "digest": to.digest.to_string(), "size": to.size});
    let ids = vec![diff_id.to_string(); 2];
    let rootfs = json!({"type": "layers", "diff_ids": ids});
    let config = write(OCI_CONFIG, &json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}))?;
    let layers: Vec<_> = layers.iter().map(point).collect();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": point(&config), "layers": layers});
    let manifest = write(OCI_MANIFEST, &manifest)?;
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [point(&manifest)]});
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

#[test]
fn large_layers_take_no_memory() -> Result<()> {
    let lab = Lab::new("large")?;
    let folder = lab.folder("layout")?;
    large_layout(&folder, if long() { 4 << 30 } else { 256 << 20 })?;
    let mut command = lab.command(&binaries()?.soci);
    command.args(["create", "--min-layer-size", "0"]).arg(format!("oci:{}", folder.display()));
    let (said, peak) = run_measured(command, LIMIT)?;
    let ztocs = ends(&said, "layer ").into_iter().map(|ztoc| {
        let file = folder.join("blobs/sha256").join(ztoc.trim_start_matches("sha256:"));
        Ok(fs::metadata(file)?.len())
    });
    let ztocs: Vec<u64> = ztocs.collect::<Result<_>>()?;
    ensure!(ztocs.len() == 2 && peak > 0, "{said}");
    let limit = MEMORY_MAX + ztocs.iter().sum::<u64>();
    ensure!(peak <= limit, "{peak} bytes of memory for ztocs of {ztocs:?}; {limit} are allowed");
    Ok(())
}
