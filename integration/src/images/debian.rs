//! Real images: Debian root file systems with something to run, from Debian's own packages. Each layer is the
//! closure of some packages without what the layers below have, unpacked but not configured; the few links and
//! files that configuring would make are made here. Kept in a cache, under a hash of the recipe.

mod packages;
mod pack;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Image, Layer};
use crate::machine::{ensure_debian, ensure_package_lists, say};
use packages::Apt;

/// Raised when what is done with the packages changes.
const RECIPE: u32 = 1;

/// Directories that are links since Debian's `/usr` was merged.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
const APP: &str = "import numpy, sys\n\
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100\n\
    a = numpy.arange(n * n, dtype=float).reshape(n, n)\n\
    print('sum', int((a @ numpy.eye(n)).sum()))\n";
const PYTHON: Recipe<'_> = Recipe {
    name: "python",
    layers: &[
        ("base", BASE),
        ("python", &["python3"]),
        ("numerics", &["python3-numpy", "libopenblas0-pthread"]),
        ("cloud", &["python3-boto3"]),
    ],
    alternatives: OPENBLAS,
    files: &[("srv/app.py", APP)],
};

/// What the packages of a Debian without anything else are.
pub const BASE: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "login",
    "mawk",
    "sed",
    "tar",
    "util-linux",
];
/// What `update-alternatives` would make for OpenBLAS.
pub const OPENBLAS: &[(&str, &str)] = &[
    ("usr/lib/x86_64-linux-gnu/libblas.so.3", "openblas-pthread/libblas.so.3"),
    ("usr/lib/x86_64-linux-gnu/liblapack.so.3", "openblas-pthread/liblapack.so.3"),
    ("usr/lib/x86_64-linux-gnu/libopenblas.so.0", "openblas-pthread/libopenblas.so.0"),
];

/// What an image is made of.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    pub name: &'a str,
    /// Lowest first: a name, and the packages that the layer adds, with what they need and no layer below has.
    pub layers: &'a [(&'a str, &'a [&'a str])],
    /// What `update-alternatives` would make, in the layer that has the target: link, target.
    pub alternatives: &'a [(&'a str, &'a str)],
    /// One more layer, where there are any: paths and texts.
    pub files: &'a [(&'a str, &'a str)],
}

/// Python with numerics and a cloud library: 280 megabytes in five layers, eighty when compressed. It runs
/// `python3 /srv/app.py`.
pub fn debian_python_image(cache: &Path) -> Result<Image> {
    Ok(debian_image(cache, &PYTHON)?.command(&["python3", "/srv/app.py"]))
}

/// The image of a recipe, from `cache` or made now (the time goes into fetching its packages).
pub fn debian_image(cache: &Path, recipe: &Recipe<'_>) -> Result<Image> {
    fs::create_dir_all(cache)?;
    // One maker at a time; the others find it made.
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("wait for another maker of images")?;
    let folder = cache.join(format!("debian-{}-{}", recipe.name, version(recipe)));
    if !folder.join("image.json").exists() {
        say(&format!("making the image {} from Debian's packages", recipe.name));
        make(&folder, recipe).with_context(|| format!("make the image {}", recipe.name))?;
    }
    load(&folder)
}

/// Changes when the image would.
fn version(recipe: &Recipe<'_>) -> String {
    let text = format!("{RECIPE} {recipe:?} {MERGED:?}");
    oci::Digest::sha256(text.as_bytes()).hex()[..16].to_owned()
}

fn make(folder: &Path, recipe: &Recipe<'_>) -> Result<()> {
    ensure_debian(&["tar", "gzip"])?;
    ensure_package_lists()?;
    // What an interrupted maker left.
    let work = folder.with_extension("new");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let apt = Apt::new(&work.join("apt"))?;
    let mut wanted = Vec::new();
    let mut present: Vec<PathBuf> = Vec::new();
    let mut layers = Vec::new();
    for (name, packages) in recipe.layers {
        wanted.extend_from_slice(packages);
        let closure = apt.download(&wanted)?;
        let added: Vec<&PathBuf> = closure.iter().filter(|file| !present.contains(file)).collect();
        let tree = work.join(name);
        unpack(&tree, &added, recipe.alternatives, layers.is_empty())?;
        layers.push(pack::pack(&tree, &work.join(format!("{name}.tar.gz")))?);
        present = closure;
    }
    if !recipe.files.is_empty() {
        let tree = work.join("app");
        for (path, text) in recipe.files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().context("find the folder of a file")?)?;
            fs::write(path, text)?;
        }
        layers.push(pack::pack(&tree, &work.join("app.tar.gz"))?);
    }
    keep(&work, folder, &layers)
}

/// Unpacks packages as one layer's tree.
fn unpack(tree: &Path, packages: &[&PathBuf], alternatives: &[(&str, &str)], is_lowest: bool) -> Result<()> {
    for name in MERGED {
        fs::create_dir_all(tree.join("usr").join(name))?;
        symlink(format!("usr/{name}"), tree.join(name))?;
    }
    for package in packages {
        packages::extract(package, tree)?;
    }
    for (link, target) in alternatives {
        let link = tree.join(link);
        let found = link.parent().is_some_and(|folder| folder.join(target).exists());
        if found && link.symlink_metadata().is_err() {
            symlink(target, link)?;
        }
    }
    if is_lowest {
        return configure(tree);
    }
    for name in MERGED {
        fs::remove_file(tree.join(name))?;
        // Made above, for the links' sake; a layer holds what its packages hold.
        let _ = fs::remove_dir(tree.join("usr").join(name));
    }
    Ok(())
}

/// What the lowest layer's packages would do when they are configured.
fn configure(tree: &Path) -> Result<()> {
    let masters = tree.join("usr/share/base-passwd");
    fs::copy(masters.join("passwd.master"), tree.join("etc/passwd"))?;
    fs::copy(masters.join("group.master"), tree.join("etc/group"))?;
    if tree.join("bin/sh").symlink_metadata().is_err() {
        symlink("dash", tree.join("bin/sh"))?;
    }
    symlink("mawk", tree.join("usr/bin/awk"))?;
    for name in ["dev", "proc", "sys", "run", "tmp", "root", "etc"] {
        fs::create_dir_all(tree.join(name))?;
    }
    Ok(())
}

/// The layers and a list of them, under the final name at once.
fn keep(work: &Path, folder: &Path, layers: &[pack::Packed]) -> Result<()> {
    let made = work.join("made");
    fs::create_dir(&made)?;
    let mut list = Vec::new();
    for layer in layers {
        let name = layer.file.file_name().context("name a layer")?.to_string_lossy().into_owned();
        fs::rename(&layer.file, made.join(&name))?;
        list.push(json!({"file": name, "diff_id": layer.diff_id.to_string(), "uncompressed": layer.size}));
    }
    fs::write(made.join("image.json"), serde_json::to_vec_pretty(&list)?)?;
    fs::rename(&made, folder).context("keep the image")?;
    fs::remove_dir_all(work).context("tidy up")
}

fn load(folder: &Path) -> Result<Image> {
    let list: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("image.json"))?)?;
    let mut layers = Vec::new();
    for entry in &list {
        let text = |key: &str| entry[key].as_str().with_context(|| format!("find {key} of a layer"));
        let bytes = fs::read(folder.join(text("file")?))?;
        layers.push(Layer::compressed(bytes, text("diff_id")?.parse()?));
    }
    Ok(Image::new(layers))
}
