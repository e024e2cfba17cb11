//! Registry to registry, and a look at what came out.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use oci::image::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use oci::testing::{Fault, Login, Rules, TestRegistry};
use oci::{Descriptor, Manifest, canonical_json};

use crate::{Told, soci};

/// A tar of one file `hello.txt` that says `hello`.
fn tar() -> Vec<u8> {
    let mut header = [0_u8; 512];
    for (at, text) in [
        (0, &b"hello.txt"[..]),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"00000000006\0"),
        (136, b"00000000000\0"),
        (148, b"011045\0 "),
        (156, b"0"),
        (257, b"ustar\x0000"),
        (329, b"0000000\0"),
        (337, b"0000000\0"),
    ] {
        header[at..at + text.len()].copy_from_slice(text);
    }
    let mut tar = header.to_vec();
    tar.extend_from_slice(b"hello\n");
    tar.resize(2048, 0);
    tar
}

/// A registry with an image `src:t` of one uncompressed layer.
pub(crate) async fn serving(rules: Rules) -> (TestRegistry, Descriptor) {
    let server = TestRegistry::start(rules).await.unwrap();
    let config = server.add_blob("src", OCI_CONFIG, &br#"{"architecture":"amd64","os":"linux"}"#[..]);
    let layer = server.add_blob("src", OCI_LAYER, tar());
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config,
        layers: Some(vec![layer.clone()]),
        subject: None,
        annotations: Default::default(),
    };
    server.add_manifest("src", "t", OCI_MANIFEST, &canonical_json(&manifest));
    (server, layer)
}

pub(crate) async fn run(args: Vec<String>) -> Told {
    let run = move || soci(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn convert(server: &TestRegistry, flags: &[&str]) -> Told {
    let (source, destination) = (server.reference("src:t"), server.reference("dst:t"));
    let mut args: Vec<String> = vec!["convert".into()];
    args.extend(flags.iter().map(|&flag| flag.to_owned()));
    args.extend([format!("docker://{source}"), format!("docker://{destination}")]);
    run(args).await
}

#[tokio::test]
async fn converts_and_shows() {
    let (server, layer) = serving(Rules::default()).await;
    let told = convert(&server, &["--min-layer-size", "0"]).await;
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = told.stdout.lines().collect();
    let ztoc = "sha256:02b672497d058029ac60eb6ae6d86de525d4baa4134600735559775b19fa3fac";
    assert_eq!(lines[0], format!("layer {} -> ztoc {ztoc}", layer.digest));
    let index = lines[1].strip_prefix("platform linux/amd64 -> index ").unwrap();
    let created = format!("created image {}@", server.reference("dst:t"));
    let image = lines[2].strip_prefix(&created).unwrap();
    assert_eq!(server.manifest("dst", "t"), server.manifest("dst", image));

    let place = |digest: &str| format!("docker://{}", server.reference(&format!("dst@{digest}")));
    let told = run(vec!["index".into(), "info".into(), place(index)]).await;
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stdout.starts_with("{\n  \"schemaVersion\": 2,\n  \"mediaType\": "), "{}", told.stdout);
    assert!(told.stdout.contains(ztoc));

    let told = run(vec!["ztoc".into(), "info".into(), place(ztoc)]).await;
    let expected = r#"{
  "version": "0.9",
  "build_tool": "AWS SOCI CLI v0.2",
  "size": 456,
  "span_size": 4194304,
  "num_spans": 1,
  "num_files": 1,
  "num_multi_span_files": 0,
  "files": [
    {
      "filename": "hello.txt",
      "offset": 512,
      "size": 6,
      "type": "reg",
      "start_span": 0,
      "end_span": 0
    }
  ]
}
"#;
    assert_eq!((told.code, told.stdout.as_str()), (0, expected), "{}", told.stderr);

    let crossed = run(vec!["index".into(), "info".into(), place(ztoc)]).await;
    assert!(crossed.stderr.contains("Use \"soci ztoc info\""), "{}", crossed.stderr);
    let crossed = run(vec!["ztoc".into(), "info".into(), place(index)]).await;
    assert!(crossed.stderr.contains("Use `soci index info`"), "{}", crossed.stderr);

    let layer = place(&layer.digest.to_string());
    let get = ["ztoc", "get-file", "--layer", &layer, &place(ztoc)].map(str::to_owned).to_vec();
    let told = run([get.clone(), vec!["hello.txt".to_owned()]].concat()).await;
    assert_eq!((told.code, told.stdout.as_str()), (0, "hello\n"), "{}", told.stderr);
    let told = run([get.clone(), vec!["nothing".to_owned()]].concat()).await;
    assert!(told.stderr.contains("file nothing does not exist in metadata"), "{}", told.stderr);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out").display().to_string();
    let told = run([get, vec!["-o".to_owned(), file.clone(), "hello.txt".to_owned()]].concat()).await;
    assert_eq!((told.code, told.stdout.as_str()), (0, ""));
    assert_eq!(std::fs::read(file).unwrap(), b"hello\n");
}

#[tokio::test]
async fn by_way_of_a_folder() {
    let (server, _) = serving(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}/layout:name", folder.path().display());
    let place = |name: &str| format!("docker://{}", server.reference(name));
    let convert = async |from: &str, to: &str| {
        let args = ["convert", "--min-layer-size", "0", from, to].map(str::to_owned);
        let told = run(args.to_vec()).await;
        assert_eq!(told.code, 0, "{}", told.stderr);
        let last = told.stdout.lines().last().unwrap().to_owned();
        assert!(last.starts_with("created image "), "{last}");
        last.rsplit_once('@').unwrap().1.to_owned()
    };
    let there = convert(&place("src:t"), &layout).await;
    assert_eq!(convert(&layout, &layout).await, there);
    assert_eq!(convert(&layout, &place("dst:t")).await, there);
    assert_eq!(server.manifest("dst", "t"), server.manifest("dst", &there));
}

#[tokio::test]
async fn nothing_big_enough() {
    let (server, layer) = serving(Rules::default()).await;
    let told = convert(&server, &[]).await;
    assert_eq!(told.code, 1);
    let skipped = format!(
        "ztoc skipped - layer {} ({OCI_LAYER}) size 2048 is less than min-layer-size 10485760\n",
        layer.digest
    );
    assert_eq!(told.stdout, skipped);
    assert_eq!(told.stderr, "soci: no ztocs created, all layers either skipped or produced errors\n");
    assert!(server.manifest("dst", "t").is_none());
}

#[tokio::test]
async fn errors_tell_what_and_why() {
    let login = Login::Basic { username: "u".into(), password: "p".into() };
    let (server, _) = serving(Rules { login, ..Rules::default() }).await;
    let told = convert(&server, &["--min-layer-size=0"]).await;
    assert_eq!(told.code, 1);
    assert!(told.stderr.starts_with(&format!("soci: log in to {}: access denied: ", server.host())));
    assert!(told.stderr.contains("docker login"), "{}", told.stderr);
    assert_eq!(told.stderr.lines().count(), 1);

    let (server, _) = serving(Rules::default()).await;
    let told = convert(&server, &["--platform", "linux/s390x"]).await;
    assert_eq!(told.stderr, "soci: image manifest for linux/s390x: not found\n");
    let missing = format!("docker://{}", server.reference("src:missing"));
    let destination = format!("docker://{}", server.reference("dst:t"));
    let told = run(vec!["convert".into(), missing, destination]).await;
    assert!(told.stderr.starts_with("soci: fetch manifest of "), "{}", told.stderr);
    assert!(told.stderr.contains("src:missing: not found"), "{}", told.stderr);
}

/// Ended in the middle of a layer, it says so and leaves nothing that is half written.
#[tokio::test]
async fn interrupted() {
    for to in ["oci", "oci-archive"] {
        let (server, layer) = serving(Rules::default()).await;
        // The first byte of a layer, of which no more comes.
        let path = format!("/blobs/{}", layer.digest);
        let headers = vec![("content-length".to_owned(), layer.size.to_string())];
        server.fail_next("GET", &path, Fault::Status(200, headers, "h".to_owned()));
        let folder = tempfile::tempdir().unwrap();
        let destination = format!("{to}:{}", folder.path().join("to").display());
        let source = format!("docker://{}", server.reference("src:t"));
        let child = Command::new(env!("CARGO_BIN_EXE_soci"))
            .args(["convert", "--min-layer-size", "0", &source, &destination])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let asked = async {
            while server.count("GET", &path) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap();
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        let told = Told::from(output);
        assert_eq!((told.code, told.stderr.as_str()), (130, "soci: interrupted\n"), "{}", told.stdout);
        let left = |folder: &Path| -> Vec<String> {
            let names =
                std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name());
            names.map(|name| name.to_string_lossy().into_owned()).collect()
        };
        let folders = ["", "to", "to/blobs/sha256"].map(|name| left(&folder.path().join(name)));
        let half = folders.concat();
        assert!(half.iter().all(|name| !name.starts_with('.')), "{half:?}");
        assert_eq!(folder.path().join("to").exists(), to == "oci");
    }
}

#[tokio::test]
async fn limit_of_the_whole() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = silent.local_addr().unwrap();
    let place = |repository: &str| format!("docker://{host}/{repository}:t");
    let told = run(vec!["convert".into(), "--timeout".into(), "200ms".into(), place("a"), place("b")]).await;
    assert_eq!(told.code, 1);
    assert_eq!(told.stderr, "soci: not done within 200ms, the limit set by --timeout\n");
}
