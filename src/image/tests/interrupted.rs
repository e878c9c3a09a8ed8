//! Imports that are cut off, that run out of room, and several at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_image::Store;
use orlop_image::build::Layer;

use crate::support::{Bench, chain, is_root, listing, recipe};

/// What the tests below run in a process of its own: an import, then the most memory that it had, in KiB.
#[test]
#[ignore = "run by other tests"]
fn import_in_a_child() {
    let variable = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let store = Store::open(variable("TEST_STORE")).unwrap();
    match store.import(&variable("TEST_ARCHIVE")) {
        Ok(_) => println!("imported"),
        Err(err) => println!("refused: {}", chain(&err)),
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap()
    );
}

/// The command that imports `archive` into `store`; `wrapper` goes in front.
fn child(wrapper: &[&str], store: &Path, archive: &Path) -> Command {
    let own = std::env::current_exe().unwrap();
    let arguments = [
        "--exact",
        "interrupted::import_in_a_child",
        "--ignored",
        "--nocapture",
    ];
    let mut words: Vec<std::ffi::OsString> = wrapper.iter().map(Into::into).collect();
    words.push(own.into());
    words.extend(arguments.map(Into::into));
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .env("TEST_STORE", store)
        .env("TEST_ARCHIVE", archive)
        .stdout(Stdio::piped());
    command
}

/// An archive whose second layer takes a while.
fn large_archive(bench: &Bench, mebibytes: usize) -> PathBuf {
    let mut recipe = recipe(vec![
        Layer::new().file("small", 0o644, "small"),
        Layer::new().file("large", 0o644, vec![1; mebibytes << 20]),
    ]);
    recipe.compression = orlop_image::decompress::Compression::Gzip;
    recipe.write_oci_layout(&bench.path("large")).unwrap();
    bench.path("large")
}

#[test]
fn an_import_that_is_killed_leaves_a_store_that_works() {
    let bench = Bench::new();
    let archive = large_archive(&bench, 64);
    let mut child = child(&[], &bench.path("images"), &archive).spawn().unwrap();
    let is_unpacking = || {
        fs::read_dir(bench.path("images/tmp"))
            .unwrap()
            .flatten()
            .any(|entry| entry.path().join("large").exists())
    };
    while !is_unpacking() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was killed"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(bench.store.list().unwrap().is_empty());
    assert!(
        bench
            .store
            .resolve("test:1")
            .unwrap_err()
            .to_string()
            .starts_with("no image test:1")
    );
    let image = bench
        .store
        .resolve(&format!("oci:{}", archive.display()))
        .unwrap();
    assert_eq!(
        image.layers[1].join("large").metadata().unwrap().len(),
        64 << 20
    );
    assert_eq!(fs::read_dir(bench.path("images/tmp")).unwrap().count(), 0);
}

#[test]
fn memory_does_not_grow_with_the_layer() {
    let bench = Bench::new();
    let archive = large_archive(&bench, 128);
    let output = child(&[], &bench.path("images"), &archive)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("imported"), "{text}");
    let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kibibytes < 24 << 10, "{line}");
}

#[test]
fn a_full_disk_is_one_clear_line_and_leaves_room_behind() {
    if !is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let bench = Bench::new();
    let archive = large_archive(&bench, 8);
    let disk = bench.path("disk");
    fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$TEST_STORE\" && \"$@\" && ls \"$TEST_STORE/tmp\" \"$TEST_STORE/layers\"";
    let wrapper = [
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-ec",
        script,
        "sh",
    ];
    let output = child(&wrapper, &disk, &archive).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("refused"))
        .unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.starts_with("refused: image test:1, layer 2 of 2 (sha256:"),
        "{line}"
    );
    assert!(
        line.contains("No space left on device") || line.contains("no room"),
        "{line}"
    );
    let listed = text.split("/tmp:\n").nth(1).unwrap();
    assert_eq!(
        listed
            .split_whitespace()
            .filter(|word| !word.ends_with(':'))
            .count(),
        0,
        "{text}"
    );
}

#[test]
fn several_starts_at_once_unpack_the_image_once() {
    let bench = Bench::new();
    let reference = format!("oci:{}", large_archive(&bench, 4).display());
    let root = bench.path("images");
    let layers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    Store::open(&root)
                        .unwrap()
                        .resolve(&reference)
                        .unwrap()
                        .layers
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 2);
    assert!(listing(&layers[0][0]).contains_key("small"));
}

#[test]
fn what_an_interrupted_import_left_is_collected() {
    let bench = Bench::new();
    let kept = bench
        .load(&recipe(vec![Layer::new().file("kept", 0o644, "")]))
        .unwrap()
        .layers;
    let orphan = bench.path("images/layers").join("0".repeat(64));
    fs::create_dir(&orphan).unwrap();
    fs::write(orphan.join("file"), "").unwrap();
    assert_eq!(bench.store.collect().unwrap().layers, 1);
    assert!(!orphan.exists() && kept[0].is_dir());
}

#[test]
fn a_damaged_store_says_which_image_to_load_again() {
    let bench = Bench::new();
    let image = bench
        .load(&recipe(vec![Layer::new().file("a", 0o644, "")]))
        .unwrap();
    fs::remove_dir_all(&image.layers[0]).unwrap();
    let err = bench.store.resolve("test:1").unwrap_err().to_string();
    assert!(
        err.starts_with(&format!("image {} in the store is damaged", image.id)),
        "{err}"
    );
    bench.store.import(&bench.path("image.tar")).unwrap();
    assert!(
        bench.store.resolve("test:1").unwrap().layers[0]
            .join("a")
            .exists()
    );
}
