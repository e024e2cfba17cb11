//! Layouts, archives, indexes beside their images, and whether ztocs are true.

use std::fs;
use std::path::Path;

use oci::testing::{Rules, TestRegistry};
use oci::{Descriptor, Layout, Manifest, Store};

use crate::Told;
use crate::convert::{run, serving};

/// What `soci` says to these words, which it must be content with.
async fn said(words: &[&str]) -> String {
    let told = run(words.iter().map(|&word| word.to_owned()).collect()).await;
    assert_eq!(told.code, 0, "{words:?}: {}", told.stderr);
    told.stdout
}

async fn refused(words: &[&str]) -> Told {
    let told = run(words.iter().map(|&word| word.to_owned()).collect()).await;
    assert_eq!(told.code, 1, "{words:?}: {}", told.stdout);
    told
}

fn created(said: &str) -> &str {
    said.lines().last().unwrap().rsplit_once('@').unwrap().1
}

/// The image of a registry as a layout in a folder, and the layer's descriptor.
async fn layout(server: &TestRegistry, folder: &Path) -> String {
    let plain = format!("oci:{}", folder.join("plain").display());
    let from = Layout::create(folder.join("plain")).await.unwrap();
    let bytes = server.manifest("src", "t").unwrap();
    let manifest = Manifest::parse(&bytes, "test").unwrap();
    for part in manifest.layers().iter().chain([&manifest.config]) {
        from.write_blob(part, server.blob("src", &part.digest).unwrap()).await.unwrap();
    }
    let descriptor = Descriptor::of(oci::image::media_type::OCI_MANIFEST, &bytes);
    from.write_tag("", &descriptor, bytes.clone()).await.unwrap();
    plain
}

#[tokio::test]
async fn archives_hold_what_folders_hold() {
    let (server, _) = serving(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let place = |kind: &str, name: &str| format!("{kind}:{}", folder.path().join(name).display());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let plain = layout(&server, folder.path()).await;
    let all = ["convert", "--min-layer-size", "0"];
    let expected = said(&[&all[..], &[&plain, &place("oci", "a")]].concat()).await;
    let expected = created(&expected);
    for (from, to) in [
        (plain.clone(), place("oci-archive", "a.tar")),
        (place("oci-archive", "a.tar"), place("oci-archive", "b.tar:name")),
        (place("oci-archive", "b.tar:name"), place("oci", "b")),
        (place("oci-archive", "b.tar"), format!("docker://{}", server.reference("dst:t"))),
        (place("oci-archive", "a.tar"), place("oci-archive", "a.tar")),
    ] {
        assert_eq!(created(&said(&[&all[..], &[&from, &to]].concat()).await), expected, "{from} {to}");
    }
    // As the Go tool has it: paths, and an archive unless a folder is asked for.
    let standalone = [&all[..], &["--standalone"]].concat();
    for (flags, to) in
        [(&[][..], "c.tar"), (&["--format", "oci-dir"], "c"), (&["--format=oci-archive"], "d.tar")]
    {
        let (plain, to, other) = (path("plain"), path(to), path("e.tar"));
        let words = [&standalone[..], flags, &[&plain, &to]].concat();
        assert_eq!(created(&said(&words).await), expected);
        let again = [&standalone[..], &[&to, &other]].concat();
        assert_eq!(created(&said(&again).await), expected);
    }
    assert!(folder.path().join("c/index.json").is_file() && folder.path().join("c.tar").is_file());
    let told = refused(&[&standalone[..], &["--format", "zip", &path("plain"), &path("x")]].concat()).await;
    assert!(told.stderr.contains("must be \"oci-archive\" or \"oci-dir\""), "{}", told.stderr);
    let told = refused(&[&standalone[..], &[&path("missing"), &path("x")]].concat()).await;
    assert!(told.stderr.contains("failed to access input"), "{}", told.stderr);
    let told = refused(&["convert", &plain, &place("oci-archive", "none.tar")]).await;
    assert!(told.stderr.contains("no ztocs created"), "{}", told.stderr);
    assert!(!folder.path().join("none.tar").exists());
    let left = fs::read_dir(folder.path()).unwrap().filter_map(Result::ok);
    assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().starts_with('.')));
}

/// `create` beside the image in a registry, and in a folder to be pushed from there.
#[tokio::test]
async fn created_and_pushed() {
    let (server, _) = serving(Rules { no_referrers: true, ..Rules::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let plain = layout(&server, folder.path()).await;
    let image = format!("docker://{}", server.reference("src:t"));
    let index = |said: &str| said.lines().last().unwrap().rsplit_once("index ").unwrap().1.to_owned();
    let there = said(&["create", "--min-layer-size", "0", &image]).await;
    let here = said(&["create", "--min-layer-size", "0", &plain]).await;
    assert_eq!(index(&there), index(&here));
    let subject = oci::Digest::sha256(&server.manifest("src", "t").unwrap());
    let tag = format!("sha256-{}", subject.hex());
    assert!(String::from_utf8_lossy(&server.manifest("src", &tag).unwrap()).contains(&index(&there)));

    let to = format!("docker://{}", server.reference("dst:t"));
    let pushed = said(&["push", &plain, &to]).await;
    let lines: Vec<&str> = pushed.lines().collect();
    assert_eq!(lines[0], "checking if a soci index already exists in remote repository...");
    assert_eq!(lines[1], format!("pushing soci index with digest: {}", index(&here)));
    assert_eq!(*lines.last().unwrap(), format!("successfully pushed artifact with digest: {}", index(&here)));
    assert!(server.manifest("dst", &index(&here)).is_some() && server.manifest("dst", &tag).is_some());

    let again = said(&["push", &plain, &to]).await;
    assert!(again.contains("[WARN] soci index found in remote repository with digest: "), "{again}");
    assert!(again.contains("skipped artifact with digest: "), "{again}");
    let skipped = said(&["push", "--existing-index=skip", &plain, &to]).await;
    assert!(skipped.contains(": skipping pushing artifacts for image manifest: "), "{skipped}");
    assert!(!skipped.contains("pushing soci index"));
    let quiet = said(&["push", "-q", "--existing-index", "allow", &plain, &to]).await;
    assert_eq!(quiet, format!("{}\n", index(&here)));

    for (words, why) in [
        (&["push"][..], "please provide an image reference to push"),
        (&["push", &plain], "please say where to"),
        (&["push", "--existing-index", "x", &plain, &to], "expected types [warn skip allow]"),
        (&["push", &image], "pushed is from containerd or from oci:FOLDER"),
        (&["push", "-p", "linux/s390x", &plain, &to], "image manifest for linux/s390x: not found"),
        (&["create"], "source image needs to be specified"),
        (&["create", "oci-archive:x"], "an archive cannot be added to"),
    ] {
        let told = refused(words).await;
        assert!(told.stderr.contains(why), "{words:?}: {}", told.stderr);
    }
    let unindexed = layout(&server, &folder.path().join("other")).await;
    let told = refused(&["push", &unindexed, &to]).await;
    let why = "could not find any soci index manifest v1 to push for platform linux/amd64";
    assert!(told.stderr.contains(why), "{}", told.stderr);
}

#[tokio::test]
async fn verified_and_found_out() {
    let (server, layer) = serving(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let plain = layout(&server, folder.path()).await;
    let converted = format!("oci:{}", folder.path().join("converted").display());
    let output = said(&["convert", "--min-layer-size", "0", "--span-size", "1024", &plain, &converted]).await;
    let ztoc = output.lines().next().unwrap().rsplit_once("ztoc ").unwrap().1.to_owned();
    let table = said(&["verify", &converted]).await;
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].starts_with("PLATFORM       LAYER DIGEST"), "{table}");
    assert_eq!(rows.len(), 2);
    for word in ["linux/amd64", &layer.digest.to_string(), &ztoc, "true, byte for byte"] {
        assert!(rows[1].contains(word), "{table}");
    }
    let json = said(&["verify", "--json", &converted]).await;
    assert!(json.contains("\"verdict\": \"true, byte for byte\""), "{json}");

    // An index beside the image, with a ztoc that is another layer's.
    let none = refused(&["verify", &plain]).await;
    assert!(none.stderr.contains("no SOCI index was found") && none.stdout.contains("no ztoc"));
    said(&["create", "--min-layer-size", "0", &plain]).await;
    assert!(said(&["verify", &plain]).await.contains("true, byte for byte"));
    let store = Layout::open(folder.path().join("plain")).await.unwrap();
    let image = store.resolve("").await.unwrap();
    let wrong = ztoc::build(&[0_u8; 1024][..], ztoc::Compression::Uncompressed, &ztoc::Options::default());
    let wrong = wrong.unwrap().ztoc;
    let listed = index::manifest::describe_ztoc(&wrong, &layer, 4 << 20);
    store.write_blob(&listed, wrong.into()).await.unwrap();
    let lie = index::manifest::encode_v1(vec![listed], &image, "another tool");
    let mut descriptor = Descriptor::of(oci::image::media_type::OCI_MANIFEST, &lie);
    descriptor.artifact_type = index::manifest::ARTIFACT_V1.to_owned();
    store.write_referrer(&descriptor, lie.into()).await.unwrap();
    let told = refused(&["verify", &plain]).await;
    assert!(
        told.stdout.contains("false: the size of the layer is 2048, the ztoc says 1024"),
        "{}",
        told.stdout
    );
    assert!(told.stderr.contains("1 of 1 ztocs are not known to be true"), "{}", told.stderr);
}

#[tokio::test]
async fn files_wanted_at_the_start() {
    let (server, layer) = serving(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let plain = layout(&server, folder.path()).await;
    let list = folder.path().join("files.json");
    fs::write(&list, r#"["/hello.txt", "nothing"]"#).unwrap();
    let to = format!("oci:{}", folder.path().join("to").display());
    let words =
        ["convert", "--min-layer-size", "0", "--prefetch-files-json", list.to_str().unwrap(), &plain, &to];
    let told = run(words.map(str::to_owned).to_vec()).await;
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert_eq!(told.stderr, "soci: prefetch file nothing not found in any layer\n");
    let line = format!("Created prefetch artifact for layer {}: ", layer.digest);
    let artifact = told.stdout.lines().find_map(|said| said.strip_prefix(&line)).unwrap();
    let file = folder.path().join("to/blobs/sha256").join(artifact.strip_prefix("sha256:").unwrap());
    let told = said(&["prefetch", "info", "--json", file.to_str().unwrap()]).await;
    for line in
        ["Span Ranges:   1", "  [0] StartSpan: 0, EndSpan: 0 (covers 1 spans)", "Total spans to prefetch: 1"]
    {
        assert!(told.lines().any(|said| said == line), "{told}");
    }
    assert!(told.contains("Raw JSON:\n{\n  \"version\": \"1.0\""), "{told}");
    fs::write(&list, r#"{"no":"array"}"#).unwrap();
    let told = refused(&words).await;
    assert!(told.stderr.contains("not a JSON array of strings"), "{}", told.stderr);
}

/// Without containerd, the layout of our own is a local store all the same.
#[tokio::test]
async fn lists_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root").display().to_string();
    let local = ["--root", &root, "--address", "/nonexistent/socket"];
    for (command, head) in [
        (
            &["index", "ls"][..],
            "DIGEST    SIZE    IMAGE REF    PLATFORM    MEDIA TYPE    MANIFEST VERSION    CREATED\n",
        ),
        (&["ztoc", "list"], "DIGEST    SIZE    LAYER DIGEST\n"),
        (&["prefetch", "ls"], "DIGEST    LAYER DIGEST    SPANS    CREATED\n"),
        (&["ztoc", "ls", "-q"], ""),
        (&["index", "ls", "--json"], "[]\n"),
        (&["prefetch", "ls", "--json"], "null\n"),
        (&["index", "rm"], ""),
    ] {
        assert_eq!(said(&[&local[..], command].concat()).await, head);
    }
    assert!(!folder.path().join("root").exists(), "a command that only looks makes nothing");
    let missing = oci::Digest::sha256(b"").to_string();
    let told = refused(&[&local[..], &["index", "rm", &missing]].concat()).await;
    assert_eq!(told.stderr, format!("soci: the index of the digest {missing} doesn't exist\n"));
    let told = refused(&[&local[..], &["ztoc", "info", &missing]].concat()).await;
    assert!(told.stderr.contains("is it running? see --address"), "{}", told.stderr);
}

/// On a terminal a bar for each layer that is read; in a pipe (as in every other test) nothing but the results.
#[tokio::test]
async fn bars_on_a_terminal() {
    let (server, layer) = serving(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let plain = layout(&server, folder.path()).await;
    let to = format!("oci:{}", folder.path().join("to").display());
    let line = format!("{} convert --min-layer-size 0 {plain} {to}", env!("CARGO_BIN_EXE_soci"));
    let shown = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let bar = format!("{} \u{2588}", &layer.digest.hex()[..12]);
    assert!(shown.contains(&bar) && shown.contains("2.00 KiB/2.00 KiB"), "{shown:?}");
    assert!(shown.contains("created image oci:"), "{shown:?}");
}
