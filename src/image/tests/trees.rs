//! What becomes of a layer: removals, replacements, inheritance, and the forms that archives come in.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use orlop_image::build::{self, Layer};
use orlop_image::decompress::Compression;
use orlop_image::tar::{Entry, Kind};

use crate::support::{Bench, chain, is_root, listing, recipe};

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let name = if is_root() {
        "trusted.overlay.opaque"
    } else {
        "user.overlay.opaque"
    };
    let mut value = [0; 8];
    rustix::fs::lgetxattr(path, name, &mut value).is_ok_and(|count| value[..count] == *b"y")
}

#[test]
fn removals_become_overlay_marks_whatever_their_order() {
    let bench = Bench::new();
    let lower = Layer::new()
        .file("gone", 0o644, "")
        .file("remade-directory/old", 0o644, "")
        .file("remade-file", 0o644, "old")
        .file("emptied/a", 0o644, "")
        .file("removed-after/old", 0o644, "");
    let upper = Layer::new()
        .file(".wh.gone", 0o644, "")
        .file(".wh.never-was", 0o644, "")
        .file(".wh.remade-directory", 0o644, "")
        .file("remade-directory/new", 0o644, "")
        .file(".wh.remade-file", 0o644, "")
        .file("remade-file", 0o644, "new")
        .file("emptied/b", 0o644, "")
        .file("emptied/.wh..wh..opq", 0o644, "")
        .file("removed-after/new", 0o644, "")
        .file(".wh.removed-after", 0o644, "")
        .file(".wh..wh.plnk/1.2", 0o644, "");
    let image = bench.load(&recipe(vec![lower, upper])).unwrap();
    let top = &image.layers[1];
    assert!(is_whiteout(&top.join("gone")));
    assert!(!top.join("never-was").exists());
    assert!(is_opaque(&top.join("remade-directory")) && top.join("remade-directory/new").is_file());
    assert_eq!(fs::read_to_string(top.join("remade-file")).unwrap(), "new");
    assert!(is_opaque(&top.join("emptied")) && top.join("emptied/b").is_file());
    assert!(is_opaque(&top.join("removed-after")) && top.join("removed-after/new").is_file());
    assert!(listing(top).keys().all(|name| !name.contains(".wh.")));
}

#[test]
fn the_kernel_stacks_the_layers_as_the_image_means_them() {
    if !is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let bench = Bench::new();
    let first = Layer::new()
        .file("etc/a", 0o644, "1")
        .file("etc/b", 0o644, "1")
        .file("opt/x/y", 0o644, "1");
    let second = Layer::new()
        .file("etc/.wh.a", 0o644, "")
        .file("opt/.wh.x", 0o644, "")
        .file("opt/x/z", 0o644, "2");
    let third = Layer::new()
        .file(".wh..wh..opq", 0o644, "")
        .file("etc/c", 0o644, "3");
    let merged = |layers: &[std::path::PathBuf]| {
        let target = bench.path("merged");
        fs::create_dir_all(&target).unwrap();
        let lowers: Vec<_> = layers
            .iter()
            .rev()
            .map(|layer| layer.display().to_string())
            .collect();
        let options = format!(
            "lowerdir={}:{}",
            lowers.join(":"),
            bench.path("empty").display()
        );
        fs::create_dir_all(bench.path("empty")).unwrap();
        let script = "mount -t overlay overlay -o \"$1\" \"$2\" && cd \"$2\" && find . -type f | sort && find . -type c";
        let output = Command::new("unshare")
            .args([
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
                &options,
                target.to_str().unwrap(),
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let two = bench
        .load(&recipe(vec![first.clone(), second.clone()]))
        .unwrap();
    assert_eq!(merged(&two.layers), "./etc/b\n./opt/x/z\n");
    let three = bench.load(&recipe(vec![first, second, third])).unwrap();
    assert_eq!(merged(&three.layers), "./etc/c\n");
}

#[test]
fn a_directory_without_an_entry_keeps_what_it_is_below() {
    let bench = Bench::new();
    let uid = rustix::process::geteuid().as_raw();
    let lower = Layer::new()
        .entry(
            Entry {
                mode: 0o1777,
                uid,
                mtime_s: 77,
                ..build::plain("var/tmp", Kind::Directory)
            },
            [],
        )
        .entry(
            Entry {
                mode: 0o750,
                uid,
                mtime_s: 99,
                ..build::plain("./", Kind::Directory)
            },
            [],
        );
    let upper = Layer::new().file("var/tmp/new", 0o644, "");
    let image = bench.load(&recipe(vec![lower, upper])).unwrap();
    let stat = |path: &str| image.layers[1].join(path).metadata().unwrap();
    assert_eq!(
        (stat("var/tmp").mode() & 0o7777, stat("var/tmp").mtime()),
        (0o1777, 77)
    );
    assert_eq!((stat("").mode() & 0o7777, stat("").mtime()), (0o750, 99));
}

#[test]
fn a_later_entry_replaces_an_earlier_one_of_the_same_name() {
    let bench = Bench::new();
    let layer = Layer::new()
        .symlink("was-link", "elsewhere")
        .directory("elsewhere", 0o755)
        .file("elsewhere/kept", 0o644, "")
        .directory("was-link", 0o755)
        .file("was-link/inside", 0o644, "")
        .file("was-directory/old", 0o644, "")
        .file("was-directory", 0o644, "file")
        .file("kept-directory/kept", 0o644, "")
        .directory("kept-directory", 0o700);
    let image = bench.load(&recipe(vec![layer])).unwrap();
    let root = &image.layers[0];
    assert!(
        root.join("was-link").symlink_metadata().unwrap().is_dir()
            && root.join("was-link/inside").is_file()
    );
    assert!(!root.join("elsewhere/inside").exists() && root.join("elsewhere/kept").is_file());
    assert_eq!(
        fs::read_to_string(root.join("was-directory")).unwrap(),
        "file"
    );
    assert!(root.join("kept-directory/kept").is_file());
    assert_eq!(
        root.join("kept-directory").metadata().unwrap().mode() & 0o777,
        0o700
    );
}

#[test]
fn a_hard_link_to_a_file_below_brings_the_file_along() {
    let bench = Bench::new();
    let lower = Layer::new().file("usr/tool", 0o755, "tool");
    let link = Entry {
        link: "usr/tool".into(),
        ..build::plain("alias", Kind::HardLink)
    };
    let image = bench
        .load(&recipe(vec![lower, Layer::new().entry(link, [])]))
        .unwrap();
    let (tool, alias) = (
        image.layers[1].join("usr/tool"),
        image.layers[1].join("alias"),
    );
    assert_eq!(
        tool.metadata().unwrap().ino(),
        alias.metadata().unwrap().ino()
    );
    assert_eq!(
        (
            fs::read_to_string(&alias).unwrap().as_str(),
            alias.metadata().unwrap().mode() & 0o777
        ),
        ("tool", 0o755)
    );
}

#[test]
fn every_compression_of_a_layer_gives_the_same_tree() {
    let mut listings = Vec::new();
    for compression in [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Bzip2,
    ] {
        let bench = Bench::new();
        let mut recipe = recipe(vec![Layer::new().file("data", 0o644, vec![3; 500_000])]);
        recipe.compression = compression;
        recipe.write_oci_layout(&bench.path("layout")).unwrap();
        let image = bench
            .store
            .resolve(&format!("oci:{}", bench.path("layout").display()))
            .unwrap();
        listings.push(listing(&image.layers[0]));
    }
    assert!(
        listings.windows(2).all(|pair| pair[0] == pair[1]),
        "{listings:?}"
    );
}

/// Runs `bytes` through a compressor of the system's, in two halves one after the other.
fn compressed_in_two(program: &str, bytes: &[u8]) -> Vec<u8> {
    let halves = bytes.split_at(bytes.len() / 2);
    let mut all = Vec::new();
    for half in [halves.0, halves.1] {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let half = half.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&half));
        all.extend(child.wait_with_output().unwrap().stdout);
        writer.join().unwrap().unwrap();
    }
    all
}

#[test]
fn layers_and_archives_of_several_compressed_parts_are_read_whole() {
    let bench = Bench::new();
    let recipe = recipe(vec![Layer::new().file("data", 0o644, vec![5; 200_000])]);
    recipe
        .write_docker_archive(&bench.path("plain.tar"))
        .unwrap();
    let plain = fs::read(bench.path("plain.tar")).unwrap();
    for program in ["gzip", "zstd", "bzip2"] {
        let mut bytes = compressed_in_two(program, &plain);
        if program == "zstd" {
            // A skippable frame (RFC 8878 §3.1.2) in front and at the end, as zstd:chunked has them.
            let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
            bytes = [&skippable, bytes.as_slice(), &skippable].concat();
        }
        let path = bench.path(program);
        fs::write(&path, bytes).unwrap();
        let other = Bench::new();
        let imported = other
            .store
            .import(&path)
            .unwrap_or_else(|err| panic!("{program}: {}", chain(&err)));
        assert_eq!(imported[0].names, ["test:1"]);
    }
}

/// `docker save` as it was until version 24: a folder a layer, shared layers as symbolic links, the manifest last.
#[test]
fn an_old_archive_with_linked_layers_is_read() {
    let bench = Bench::new();
    let layer = Layer::new().file("a", 0o644, "a");
    recipe(vec![layer.clone(), layer])
        .write_docker_archive(&bench.path("new.tar"))
        .unwrap();
    let old = bench.path("old");
    fs::create_dir_all(old.join("one")).unwrap();
    fs::create_dir_all(old.join("two")).unwrap();
    let run = |script: &str| {
        let status = Command::new("sh")
            .arg("-ec")
            .arg(script)
            .current_dir(&old)
            .status()
            .unwrap();
        assert!(status.success());
    };
    run(
        "tar xf ../new.tar && mv [0-9a-f]*.tar one/layer.tar && tar cf dummy.tar --files-from=/dev/null",
    );
    symlink("../one/layer.tar", old.join("two/layer.tar")).unwrap();
    let manifest = fs::read_to_string(old.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest[0]["Layers"] = serde_json::json!(["one/layer.tar", "two/layer.tar"]);
    fs::write(old.join("manifest.json"), manifest.to_string()).unwrap();
    run("tar cf ../old.tar one two *.json");
    let image = bench
        .store
        .resolve(&format!(
            "docker-archive:{}",
            bench.path("old.tar").display()
        ))
        .unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(fs::read_to_string(image.layers[1].join("a")).unwrap(), "a");
}

#[test]
fn a_second_start_from_an_archive_unpacks_nothing() {
    let bench = Bench::new();
    let recipe = recipe(vec![Layer::new().file("a", 0o644, "a")]);
    let archive = bench.path("a.tar");
    recipe.write_docker_archive(&archive).unwrap();
    let reference = format!("docker-archive:{}", archive.display());
    let first = bench.store.resolve(&reference).unwrap();
    fs::write(first.layers[0].join("mark"), "").unwrap();
    let second = bench.store.resolve(&reference).unwrap();
    assert_eq!(first.layers, second.layers);
    assert!(
        second.layers[0].join("mark").exists(),
        "the layer was unpacked again"
    );
}

#[test]
fn names_ids_and_digests_find_the_image_and_others_say_what_to_do() {
    let bench = Bench::new();
    let recipe = recipe(vec![Layer::new().file("a", 0o644, "a")]);
    recipe.write_oci_layout(&bench.path("layout")).unwrap();
    let imported = bench.store.import(&bench.path("layout")).unwrap();
    let id = &imported[0].id;
    let index = fs::read_to_string(bench.path("layout/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap();
    for reference in [
        "test:1",
        "docker.io/library/test:1",
        "docker://test:1",
        &id.to_string(),
        &id.hex()[..12],
        &format!("test@{manifest}"),
        &format!("test:other@{manifest}"),
    ] {
        let image = bench
            .store
            .resolve(reference)
            .unwrap_or_else(|err| panic!("{reference}: {}", chain(&err)));
        assert_eq!(
            (&image.id, image.names.as_slice()),
            (id, ["test:1".to_owned()].as_slice())
        );
    }
    let error = |reference: &str| chain(&bench.store.resolve(reference).unwrap_err());
    assert_eq!(
        error("test:2"),
        "no image test:2 in the store (load one with `docker load -i FILE`)"
    );
    assert!(
        error("Test").contains("is no image reference"),
        "{}",
        error("Test")
    );
    let two = format!("oci:{}:nope", bench.path("layout").display());
    assert!(
        error(&two).ends_with("holds test:1; none of them is nope"),
        "{}",
        error(&two)
    );
}

#[test]
fn an_image_goes_with_its_last_name_and_shared_layers_stay() {
    let bench = Bench::new();
    let base = Layer::new().file("base", 0o644, "b");
    let mut other = recipe(vec![base.clone(), Layer::new().file("top", 0o644, "t")]);
    other.name = "other:1".into();
    let base = bench.load(&recipe(vec![base])).unwrap();
    let top = bench.load(&other).unwrap();
    assert_eq!(base.layers[0], top.layers[0]);
    bench.store.tag("other:1", "again:2").unwrap();
    assert!(
        bench
            .store
            .remove(&top.id.to_string(), false)
            .unwrap_err()
            .to_string()
            .contains("several names")
    );
    let removed = bench.store.remove("again:2", false).unwrap();
    assert_eq!(
        (removed.untagged.as_slice(), removed.deleted),
        (["again:2".to_owned()].as_slice(), None)
    );
    let removed = bench.store.remove("other:1", false).unwrap();
    assert_eq!(removed.deleted.as_ref(), Some(&top.id));
    assert!(
        top.layers[1].is_dir(),
        "a layer was removed although an image was held"
    );
    let layers = (base.layers.clone(), top.layers.clone());
    drop((base, top));
    bench.store.collect().unwrap();
    assert!(layers.0[0].is_dir() && !layers.1[1].exists());
}
