//! The images that are measured, made of Debian's packages, and what is run in them.

use anyhow::{Context, Result};
use integration::{
    images::{self, Image, Recipe, debian},
    machine,
};

/// An image, what is run in it, and the bar of its start: ours / overlayfs at 1 Gbit/s and 20 ms.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub recipe: Recipe<'static>,
    pub program: &'static [&'static str],
    pub bar: f64,
}

const PYTHON3: (&str, &[&str]) = ("python", &["python3"]);
const BASE: (&str, &[&str]) = ("base", debian::BASE);

/// Packages of the image of many layers, one layer each.
const MANY: &[(&str, &[&str])] = &[
    BASE,
    ("perl", &["perl"]),
    ("openssl", &["openssl"]),
    ("curl", &["curl"]),
    ("git", &["git"]),
    ("vim", &["vim-tiny"]),
    ("less", &["less"]),
    ("tmux", &["tmux"]),
    ("jq", &["jq"]),
    ("rsync", &["rsync"]),
    ("zip", &["zip"]),
    ("unzip", &["unzip"]),
    ("xz", &["xz-utils"]),
    ("zstd", &["zstd"]),
    ("make", &["make"]),
    ("patch", &["patch"]),
    ("file", &["file"]),
    ("strace", &["strace"]),
    ("gdb", &["gdb"]),
    PYTHON3,
    ("requests", &["python3-requests"]),
    ("yaml", &["python3-yaml"]),
    ("lxml", &["python3-lxml"]),
    ("numpy", &["python3-numpy"]),
    ("sqlite", &["sqlite3"]),
    ("psql", &["postgresql-client-15"]),
    ("redis", &["redis-tools"]),
    ("node", &["nodejs"]),
    ("ruby", &["ruby"]),
    ("lua", &["lua5.4"]),
    ("tree", &["tree"]),
];

pub const WORKLOADS: &[Workload] = &[
    Workload {
        recipe: Recipe { name: "python3", layers: &[BASE, PYTHON3], alternatives: &[], files: &[] },
        program: &["python3", "-c", "import json, platform; print(platform.python_version())"],
        bar: 0.40,
    },
    Workload {
        recipe: Recipe {
            name: "java",
            layers: &[BASE, ("java", &["openjdk-17-jre-headless"])],
            alternatives: &[("usr/bin/java", "../lib/jvm/java-17-openjdk-amd64/bin/java")],
            files: &[],
        },
        program: &["java", "-version"],
        bar: 0.28,
    },
    Workload {
        recipe: Recipe {
            name: "node",
            layers: &[BASE, ("node", &["nodejs"])],
            alternatives: &[],
            files: &[],
        },
        program: &["node", "-e", "console.log(process.version)"],
        bar: 0.40,
    },
    Workload {
        recipe: Recipe { name: "many", layers: MANY, alternatives: &[], files: &[] },
        program: &["git", "--version"],
        bar: 0.30,
    },
    Workload {
        recipe: Recipe {
            name: "ml",
            layers: &[
                BASE,
                PYTHON3,
                ("numpy", &["python3-numpy", "libopenblas0-pthread"]),
                ("pandas", &["python3-pandas"]),
                ("sklearn", &["python3-sklearn"]),
            ],
            alternatives: debian::OPENBLAS,
            files: &[],
        },
        program: &["python3", "-c", "import numpy, pandas, sklearn.linear_model; print(pandas.__version__)"],
        bar: 0.50,
    },
    Workload {
        recipe: Recipe {
            name: "large",
            layers: &[
                BASE,
                PYTHON3,
                ("numpy", &["python3-numpy", "libopenblas0-pthread", "python3-sympy"]),
                ("fonts", &["texlive-fonts-extra", "texlive-latex-extra", "texlive-science"]),
            ],
            alternatives: debian::OPENBLAS,
            files: &[],
        },
        program: &["python3", "-c", "import numpy, sympy; print(sympy.__version__)"],
        bar: 0.12,
    },
];

impl Workload {
    pub fn named(name: &str) -> Option<&'static Workload> {
        WORKLOADS.iter().find(|workload| workload.recipe.name == name)
    }

    /// The image, made now if it was not made before.
    pub fn image(&self) -> Result<Image> {
        images::debian_image(&machine::fixtures()?, &self.recipe)
            .with_context(|| format!("have the image {}", self.recipe.name))
    }
}
