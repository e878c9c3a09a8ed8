//! Archives made to do harm, or damaged on the way: each is refused with a reason, and leaves the store as it was.

use std::fs;
use std::io::Write;

use orlop_image::Limits;
use orlop_image::build::{self, Layer};
use orlop_image::decompress::Compression;
use orlop_image::digest::{Algorithm, Digest};
use orlop_image::tar::{Entry, Kind};
use proptest::prelude::*;

use crate::support::{Bench, chain, listing, recipe};

fn link(path: &str, target: &str, kind: Kind) -> Entry {
    Entry {
        link: target.into(),
        ..build::plain(path, kind)
    }
}

/// The reason for which an image of this layer is refused.
fn refusal(layer: Layer) -> String {
    let bench = Bench::new();
    let err = bench
        .load(&recipe(vec![layer]))
        .expect_err("it was accepted");
    assert!(bench.is_clean(), "the store is not as it was after: {err}");
    err
}

#[test]
fn paths_that_lead_upwards_are_refused() {
    for path in ["../escape", "a/../../escape", "a/..", "..", "/../escape"] {
        let err = refusal(Layer::new().file(path, 0o644, ""));
        assert!(
            err.starts_with("image test:1, layer 1 of 1 (sha256:"),
            "{err}"
        );
        assert!(err.ends_with("the path leads upwards (\"..\")"), "{err}");
    }
    let target = link("hard", "../../../etc/passwd", Kind::HardLink);
    assert!(refusal(Layer::new().entry(target, [])).contains("leads upwards"));
}

#[test]
fn absolute_paths_stay_in_the_tree() {
    let bench = Bench::new();
    let outside = bench.path("outside");
    let path = outside.to_str().unwrap();
    let image = bench
        .load(&recipe(vec![Layer::new().file(path, 0o644, "in")]))
        .unwrap();
    assert!(!outside.exists());
    assert!(image.layers[0].join(path.trim_start_matches('/')).is_file());
}

#[test]
fn nothing_is_written_through_a_link_that_leads_out() {
    let bench = Bench::new();
    let outside = bench.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let before = listing(&outside);
    let absolute = outside.to_str().unwrap();
    for target in [
        absolute,
        "../../../outside",
        "/proc/self/cwd",
        "/proc/1/root",
        ".",
    ] {
        for entry in [
            build::plain("way/victim", Kind::File),
            build::plain("way/new", Kind::Directory),
            build::plain("way/.wh.victim", Kind::File),
            build::plain("way/.wh..wh..opq", Kind::File),
            link("way/hard", "way/victim", Kind::HardLink),
            Entry {
                mode: 0o777,
                ..build::plain("way", Kind::Directory)
            },
            Entry {
                mode: 0o777,
                uid: 12,
                ..build::plain("way", Kind::File)
            },
        ] {
            let layer = Layer::new().symlink("way", target).entry(entry, []);
            // Some of them mean something inside the tree and are accepted; none may touch what is outside.
            let _ = bench.load(&recipe(vec![layer]));
            assert_eq!(listing(&outside), before, "through {target}");
        }
    }
    // A lower layer's link is no way out either.
    let lower = Layer::new().symlink("way", absolute);
    let upper =
        Layer::new()
            .file("way/victim", 0o666, "overwritten")
            .file("way/.wh.victim", 0o644, "");
    let _ = bench.load(&recipe(vec![lower, upper]));
    assert_eq!(listing(&outside), before);
}

#[test]
fn a_hard_link_reaches_nothing_but_the_layers_files() {
    let through = Layer::new()
        .symlink("way", "/etc")
        .entry(link("hard", "way/passwd", Kind::HardLink), []);
    assert!(refusal(through).contains("cannot link \"hard\" to \"way/passwd\""));
    let missing = Layer::new().entry(link("hard", "/etc/passwd", Kind::HardLink), []);
    assert!(refusal(missing).contains("cannot link"));
    let own = Layer::new()
        .file("a", 0o644, "")
        .entry(link("a", "./a", Kind::HardLink), []);
    assert!(refusal(own).contains("a hard link to itself"));
    let directory = Layer::new()
        .directory("d", 0o755)
        .entry(link("hard", "d", Kind::HardLink), []);
    assert!(refusal(directory).contains("a hard link to a directory"));
}

#[test]
fn whiteouts_that_name_no_file_are_refused() {
    for name in [".wh.", ".wh..", ".wh..."] {
        let err = refusal(Layer::new().file(&format!("dir/{name}"), 0o644, ""));
        assert!(
            err.ends_with("a whiteout of no name, or of a whole directory"),
            "{err}"
        );
    }
    assert!(refusal(Layer::new().directory(".wh.a", 0o755)).contains("no regular file"));
    assert!(refusal(Layer::new().file(".wh.a/b", 0o755, "")).contains("a whiteout holds nothing"));
}

#[test]
fn attributes_that_steer_overlayfs_are_refused() {
    for name in [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.opaque",
    ] {
        let xattrs = vec![(name.into(), b"y".to_vec())];
        let entry = Entry {
            xattrs,
            ..build::plain("dir", Kind::Directory)
        };
        assert!(refusal(Layer::new().entry(entry, [])).contains("steers overlayfs"));
    }
}

#[test]
fn a_device_that_is_a_whiteout_works_as_one() {
    let bench = Bench::new();
    let lower = Layer::new().file("gone", 0o644, "");
    let device = build::plain("gone", Kind::Character);
    let nothing = build::plain("never-was", Kind::Character);
    let image = bench
        .load(&recipe(vec![
            lower,
            Layer::new().entry(device, []).entry(nothing, []),
        ]))
        .unwrap();
    assert!(image.layers[1].join("gone").symlink_metadata().is_ok());
    assert!(
        image.layers[1]
            .join("never-was")
            .symlink_metadata()
            .is_err()
    );
}

#[test]
fn what_is_larger_than_the_limits_is_refused() {
    let limits = Limits {
        layer_bytes: 8 << 20,
        ratio: 50,
        ratio_floor_bytes: 1 << 20,
        entries: 10,
        path_depth: 5,
        ..Limits::default()
    };
    let refusal = |layer: Layer, compression: Compression| {
        let bench = Bench::with_limits(limits.clone());
        let mut recipe = recipe(vec![layer]);
        recipe.compression = compression;
        recipe.write_oci_layout(&bench.path("layout")).unwrap();
        let err = chain(&bench.store.import(&bench.path("layout")).unwrap_err());
        assert!(bench.is_clean(), "{err}");
        err
    };
    let zeros = |count: usize| Layer::new().file("zeros", 0o644, vec![0; count]);
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Bzip2] {
        let err = refusal(zeros(4 << 20), compression);
        assert!(
            err.ends_with("it uncompresses to more than 50 times its size"),
            "{err}"
        );
    }
    let err = refusal(zeros(9 << 20), Compression::None);
    assert!(
        err.ends_with("it uncompresses to more than 8388608 bytes"),
        "{err}"
    );
    let many = (0..11).fold(Layer::new(), |layer, i| {
        layer.directory(&format!("d{i}"), 0o755)
    });
    assert!(refusal(many, Compression::None).ends_with("more than 10 entries"));
    let deep = Layer::new().directory("a/b/c/d/e/f", 0o755);
    assert!(refusal(deep, Compression::None).ends_with("the path is too deep"));
    let large_header = Entry {
        xattrs: vec![(b"user.a".to_vec(), vec![1; 2 << 20])],
        ..build::plain("a", Kind::File)
    };
    let err = refusal(Layer::new().entry(large_header, []), Compression::None);
    assert!(err.contains("larger than 1048576 bytes"), "{err}");
    let long_name = Layer::new().file(&"n".repeat(256), 0o644, "");
    assert!(refusal(long_name, Compression::None).ends_with("a name longer than 255 bytes"));
}

#[test]
fn a_compressed_archive_that_never_ends_is_refused() {
    let limits = Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let bench = Bench::with_limits(limits);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&vec![0; 2 << 20]).unwrap();
    fs::write(bench.path("bomb.tar.gz"), encoder.finish().unwrap()).unwrap();
    let err = chain(&bench.store.import(&bench.path("bomb.tar.gz")).unwrap_err());
    assert!(err.ends_with("it has more than 1048576 bytes"), "{err}");
    assert!(bench.is_clean());
}

/// Replaces the only occurrence of `from`, of the same length, in an archive's plain bytes.
fn patch(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut found = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from);
    let (at, None) = (found.next().unwrap().0, found.next()) else {
        panic!("it is there twice")
    };
    bytes[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn a_layer_with_another_content_is_named_with_both_digests() {
    let bench = Bench::new();
    let recipe = recipe(vec![Layer::new().file("a", 0o644, "the content")]);
    let archive = bench.path("image.tar");
    recipe.write_docker_archive(&archive).unwrap();
    let mut bytes = fs::read(&archive).unwrap();
    patch(&mut bytes, b"the content", b"the c0ntent");
    fs::write(&archive, bytes).unwrap();
    let expected = Digest::of(Algorithm::Sha256, &recipe.layers[0].to_tar());
    let other = Layer::new().file("a", 0o644, "the c0ntent").to_tar();
    let got = Digest::of(Algorithm::Sha256, &other);
    assert_eq!(
        chain(&bench.store.import(&archive).unwrap_err()),
        format!(
            "image test:1, layer 1 of 1 ({expected}): the uncompressed layer does not match its diff_id: \
             expected {expected}, got {got}"
        )
    );
    assert!(bench.is_clean());
}

#[test]
fn a_damaged_tar_in_a_layer_is_reported_as_a_wrong_digest() {
    let bench = Bench::new();
    let archive = bench.path("image.tar");
    recipe(vec![Layer::new().file("a-name-to-find", 0o644, "")])
        .write_docker_archive(&archive)
        .unwrap();
    let mut bytes = fs::read(&archive).unwrap();
    patch(&mut bytes, b"a-name-to-find", b"a-name-to-lose");
    fs::write(&archive, bytes).unwrap();
    let err = chain(&bench.store.import(&archive).unwrap_err());
    assert!(err.contains("does not match its diff_id"), "{err}");
}

/// A layout of one image, for its documents to be changed.
struct Layout {
    bench: Bench,
    index: serde_json::Value,
    manifest: serde_json::Value,
}

impl Layout {
    fn new() -> Self {
        let bench = Bench::new();
        let recipe = recipe(vec![Layer::new().file("a", 0o644, "a")]);
        recipe.write_oci_layout(&bench.path("layout")).unwrap();
        let index = fs::read(bench.path("layout/index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let manifest = fs::read(Self::blob_path(&bench, &index["manifests"][0]["digest"])).unwrap();
        let manifest = serde_json::from_slice(&manifest).unwrap();
        Self {
            bench,
            index,
            manifest,
        }
    }

    fn blob_path(bench: &Bench, digest: &serde_json::Value) -> std::path::PathBuf {
        bench
            .path("layout/blobs/sha256")
            .join(digest.as_str().unwrap().trim_start_matches("sha256:"))
    }

    /// Puts the manifest back under its new digest, and the index, and imports.
    fn import(mut self) -> Result<(), String> {
        let bytes = serde_json::to_vec(&self.manifest).unwrap();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        fs::write(
            self.bench.path("layout/blobs/sha256").join(digest.hex()),
            &bytes,
        )
        .unwrap();
        if self.index["manifests"][0]["mediaType"] == "application/vnd.oci.image.manifest.v1+json" {
            self.index["manifests"][0]["digest"] = digest.to_string().into();
            self.index["manifests"][0]["size"] = bytes.len().into();
        }
        fs::write(self.bench.path("layout/index.json"), self.index.to_string()).unwrap();
        let result = self.bench.store.import(&self.bench.path("layout"));
        result.map(drop).map_err(|err| {
            assert!(self.bench.is_clean());
            chain(&err)
        })
    }
}

#[test]
fn blobs_are_checked_against_their_descriptors_first() {
    let layout = Layout::new();
    let blob = Layout::blob_path(&layout.bench, &layout.manifest["layers"][0]["digest"]);
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let err = layout.import().unwrap_err();
    assert!(
        err.contains("the blob does not match its digest: expected sha256:"),
        "{err}"
    );

    let mut layout = Layout::new();
    layout.manifest["layers"][0]["size"] = 1.into();
    assert!(
        layout
            .import()
            .unwrap_err()
            .contains("wrong size: expected 1 bytes")
    );

    let layout = Layout::new();
    let blob = Layout::blob_path(&layout.bench, &layout.manifest["config"]["digest"]);
    let config = fs::read_to_string(&blob).unwrap().replace("amd64", "arm64");
    fs::write(&blob, config).unwrap();
    let err = layout.import().unwrap_err();
    assert!(
        err.contains("does not match its digest: expected sha256:"),
        "{err}"
    );
}

#[test]
fn a_document_that_is_two_things_at_once_is_refused() {
    let mut layout = Layout::new();
    layout.manifest["manifests"] = serde_json::json!([]);
    assert!(
        layout
            .import()
            .unwrap_err()
            .ends_with("it is an index and a manifest at once")
    );
    let mut layout = Layout::new();
    layout.index["layers"] = serde_json::json!([]);
    assert!(
        layout
            .import()
            .unwrap_err()
            .ends_with("it is an index and a manifest at once")
    );
    let mut layout = Layout::new();
    layout.manifest["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    assert!(layout.import().unwrap_err().contains("it calls itself"));
}

#[test]
fn other_platforms_and_unknown_artefacts_are_passed_over() {
    let mut layout = Layout::new();
    let mut foreign = layout.index["manifests"][0].clone();
    foreign["platform"]["architecture"] = "arm64".into();
    foreign["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    let mut artefact = foreign.clone();
    artefact["platform"]["architecture"] = "amd64".into();
    artefact["mediaType"] = "application/vnd.example.thing".into();
    layout.index["manifests"]
        .as_array_mut()
        .unwrap()
        .extend([foreign.clone(), artefact]);
    layout.import().unwrap();
    let mut layout = Layout::new();
    layout.index["manifests"] = serde_json::json!([foreign]);
    assert!(
        layout
            .import()
            .unwrap_err()
            .ends_with("no image for linux/amd64, only linux/arm64")
    );
}

#[test]
fn an_image_for_another_machine_is_refused_before_it_is_unpacked() {
    let mut layout = Layout::new();
    let blob = Layout::blob_path(&layout.bench, &layout.manifest["config"]["digest"]);
    let config = fs::read_to_string(&blob).unwrap().replace("amd64", "arm64");
    let digest = Digest::of(Algorithm::Sha256, config.as_bytes());
    fs::write(
        layout.bench.path("layout/blobs/sha256").join(digest.hex()),
        config,
    )
    .unwrap();
    layout.manifest["config"]["digest"] = digest.to_string().into();
    let err = layout.import().unwrap_err();
    assert!(
        err.ends_with("the image is for linux/arm64, and this machine is linux/amd64"),
        "{err}"
    );
}

#[test]
fn an_index_that_holds_itself_ends() {
    let mut layout = Layout::new();
    // No document can hold its own digest; a chain of them comes closest.
    for _ in 0..10 {
        let bytes = layout.index.to_string();
        let digest = Digest::of(Algorithm::Sha256, bytes.as_bytes());
        fs::write(
            layout.bench.path("layout/blobs/sha256").join(digest.hex()),
            &bytes,
        )
        .unwrap();
        layout.index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest.to_string(),
            "size": bytes.len(),
        }]});
    }
    assert!(
        layout
            .import()
            .unwrap_err()
            .ends_with("indexes nest deeper than 4")
    );
}

#[test]
fn what_is_not_an_image_says_so() {
    let bench = Bench::new();
    let import = |name: &str, bytes: &[u8]| {
        fs::write(bench.path(name), bytes).unwrap();
        chain(&bench.store.import(&bench.path(name)).unwrap_err())
    };
    assert!(
        import("text", b"no archive at all")
            .contains("text is no image archive: the archive is cut off")
    );
    assert!(import("empty", b"").contains("holds neither a docker save archive"));
    assert!(import("xz", b"\xfd7zXZ\0\0").ends_with("xz compression is not supported"));
    assert!(
        chain(&bench.store.import(&bench.path("nowhere")).unwrap_err()).contains("cannot open")
    );
    // A pipe in the place of a document must not make us wait.
    let layout = bench.path("pipes");
    fs::create_dir(&layout).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    let directory = fs::File::open(&layout).unwrap();
    rustix::fs::mknodat(
        &directory,
        "index.json",
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    assert!(chain(&bench.store.import(&layout).unwrap_err()).contains("holds neither"));
}

#[test]
fn members_that_link_to_each_other_are_missing() {
    let bench = Bench::new();
    let tar = Layer::new()
        .symlink("manifest.json", "other")
        .symlink("other", "manifest.json")
        .symlink("index.json", "../../etc/passwd")
        .to_tar();
    fs::write(bench.path("loop.tar"), tar).unwrap();
    assert!(
        chain(&bench.store.import(&bench.path("loop.tar")).unwrap_err()).contains("holds neither")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_archive_is_refused_or_gives_the_same_tree(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        compression in prop::sample::select(vec![
            None, Some(Compression::None), Some(Compression::Gzip), Some(Compression::Zstd), Some(Compression::Bzip2),
        ]),
    ) {
        let bench = Bench::new();
        let layer = Layer::new().file("file", 0o644, "text ".repeat(200)).symlink("link", "file").directory("dir", 0o700);
        let mut recipe = recipe(vec![layer]);
        let archive = bench.path("image.tar");
        match compression {
            None => recipe.write_docker_archive(&archive).unwrap(),
            Some(compression) => {
                recipe.compression = compression;
                recipe.write_oci_layout(&bench.path("layout")).unwrap();
                let status = std::process::Command::new("tar")
                    .args(["-C", bench.path("layout").to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."])
                    .status()
                    .unwrap();
                assert!(status.success());
            }
        }
        let good = Bench::new();
        let expected = good.load(&recipe).unwrap();
        let mut bytes = fs::read(&archive).unwrap();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&archive, bytes).unwrap();
        match bench.store.import(&archive) {
            Ok(imported) => {
                let image = bench.store.resolve(&imported[0].id.to_string()).unwrap();
                prop_assert_eq!(&image.id, &expected.id);
                prop_assert_eq!(listing(&image.layers[0]), listing(&expected.layers[0]));
            }
            Err(_) => prop_assert!(bench.is_clean()),
        }
    }

    #[test]
    fn no_entries_whatever_touch_what_is_outside(
        entries in prop::collection::vec(
            (
                prop::sample::select(vec![
                    Kind::File, Kind::HardLink, Kind::Symlink, Kind::Directory, Kind::Fifo, Kind::Character,
                ]),
                "(a|b|c|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq|\\.\\.|/)(/(a|b|c|\\.wh\\.b|\\.\\.)){0,3}",
                "(/|\\.\\./|\\./)?(a|b|c|\\.\\.|victim|outside/victim)(/(a|b|c|\\.\\.)){0,3}",
            ),
            1..12,
        ),
        split in 0_usize..12,
    ) {
        let bench = Bench::new();
        let outside = bench.path("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "untouched").unwrap();
        let before = listing(&outside);
        let mut layers = vec![Layer::new(), Layer::new()];
        for (index, (kind, path, target)) in entries.into_iter().enumerate() {
            let layer = &mut layers[usize::from(index >= split)];
            *layer = std::mem::take(layer).entry(link(&path, &target, kind), []);
        }
        let loaded = bench.load(&recipe(layers));
        prop_assert_eq!(listing(&outside), before);
        let names: Vec<_> = fs::read_dir(bench.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert!(names.iter().all(|n| n == "images" || n == "image.tar" || n == "outside"), "{:?}", names);
        if loaded.is_err() {
            prop_assert!(bench.is_clean());
        }
    }
}
