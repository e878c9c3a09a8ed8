//! Other tools as judges: skopeo writes what we read and reads what we write; umoci's tree is compared with ours.

use std::fs;
use std::path::Path;

use orlop_image::build::{self, Layer};
use orlop_image::decompress::Compression;
use orlop_image::sample;
use orlop_image::tar::{Entry, Kind};

use crate::support::{Bench, is_root, listing, recipe, tool};

/// One layer with everything that an image may hold.
fn rich_layer() -> Layer {
    let long = format!(
        "{}/{}",
        "folder-with-a-long-name".repeat(6),
        "file-with-a-long-name".repeat(5)
    );
    Layer::new()
        .entry(
            Entry {
                mode: 0o755,
                mtime_s: 1_600_000_000,
                ..build::plain("./", Kind::Directory)
            },
            [],
        )
        .entry(
            Entry {
                mode: 0o1777,
                mtime_s: 1_234_567_890,
                ..build::plain("tmp/", Kind::Directory)
            },
            [],
        )
        .file("usr/bin/program", 0o4755, vec![b'x'; 300_000])
        .entry(
            Entry {
                uid: 1000,
                gid: 70_000,
                mtime_s: 12,
                mtime_ns: 345,
                ..build::plain("owned", Kind::File)
            },
            "own",
        )
        .entry(
            Entry {
                uid: 3_000_000,
                gid: 3_000_000,
                ..build::plain("far-owner", Kind::File)
            },
            "far",
        )
        .entry(
            Entry {
                link: "usr/bin/program".into(),
                ..build::plain("hard", Kind::HardLink)
            },
            [],
        )
        .symlink("bin", "usr/bin")
        .symlink("absolute", "/etc/passwd")
        .file(&long, 0o600, "long")
        .file("umlaut-ä", 0o644, "")
        .entry(
            Entry {
                mode: 0o620,
                ..build::plain("pipe", Kind::Fifo)
            },
            [],
        )
        .entry(
            Entry {
                mode: 0o666,
                device: (1, 3),
                ..build::plain("dev/null", Kind::Character)
            },
            [],
        )
        .entry(
            Entry {
                mode: 0o660,
                device: (7, 300),
                ..build::plain("dev/disk", Kind::Block)
            },
            [],
        )
        .entry(
            Entry {
                mode: 0o755,
                // cap_net_raw+ep, revision 2 (include/uapi/linux/capability.h, vfs_cap_data).
                xattrs: vec![(
                    b"security.capability".to_vec(),
                    vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                )],
                ..build::plain("ping", Kind::File)
            },
            "ping",
        )
        .entry(
            Entry {
                mtime_s: -1000,
                ..build::plain("old", Kind::File)
            },
            "before 1970",
        )
        .entry(
            Entry {
                mode: 0o700,
                mtime_s: 1_111_111_111,
                ..build::plain("usr/bin/", Kind::Directory)
            },
            [],
        )
}

#[test]
fn the_unpacked_tree_is_the_one_that_umoci_unpacks() {
    if !is_root() {
        eprintln!("SKIPPED: owners and devices need root");
        return;
    }
    let bench = Bench::new();
    let recipe = recipe(vec![rich_layer()]);
    let layout = bench.path("layout");
    recipe.write_oci_layout(&layout).unwrap();
    // umoci takes tags without a colon only.
    let index = fs::read_to_string(layout.join("index.json"))
        .unwrap()
        .replace("test:1", "one");
    fs::write(layout.join("index.json"), index).unwrap();
    let (image, bundle) = (format!("{}:one", layout.display()), bench.path("bundle"));
    let arguments = ["unpack", "--image", &image, bundle.to_str().unwrap()];
    if tool("umoci", &arguments, bench.folder.path()).is_none() {
        return;
    }
    let ours = bench
        .store
        .resolve(&format!("oci:{}:one", layout.display()))
        .unwrap();
    let (mut expected, mut got) = (listing(&bundle.join("rootfs")), listing(&ours.layers[0]));
    // Directories without an entry of their own get the time of unpacking from umoci, and so does the root.
    for implied in ["/", "usr", "dev", &"folder-with-a-long-name".repeat(6)] {
        expected.remove(implied).unwrap();
        got.remove(implied).unwrap();
    }
    assert_eq!(got, expected);
}

/// Loads our archive after skopeo has copied it to `target`, and compares with a load of ours.
fn is_the_same_after_skopeo(target: &str, extra: &[&str], from_layout: Option<Compression>) {
    let bench = Bench::new();
    let mut recipe = recipe(vec![
        rich_layer(),
        Layer::new().file("second", 0o644, "layer"),
    ]);
    let from = match from_layout {
        None => {
            recipe
                .write_docker_archive(&bench.path("ours.tar"))
                .unwrap();
            format!("docker-archive:{}", bench.path("ours.tar").display())
        }
        Some(compression) => {
            recipe.compression = compression;
            recipe.write_oci_layout(&bench.path("ours")).unwrap();
            format!("oci:{}:test:1", bench.path("ours").display())
        }
    };
    let (transport, name) = target.split_once(':').unwrap();
    let path = bench.path("theirs");
    let to = format!("{transport}:{}{name}", path.display());
    let arguments = [&["copy", "--insecure-policy"], extra, &[&from, &to]].concat();
    if tool("skopeo", &arguments, bench.folder.path()).is_none() {
        return;
    }
    let theirs = bench.store.import(&path).unwrap();
    let theirs = bench.store.resolve(&theirs[0].id.to_string()).unwrap();
    let other = Bench::new();
    let ours = other.load(&recipe).unwrap();
    assert_eq!(theirs.layers.len(), 2);
    for (theirs, ours) in theirs.layers.iter().zip(&ours.layers) {
        assert_eq!(theirs.file_name(), ours.file_name());
        assert_eq!(listing(theirs), listing(ours));
    }
}

#[test]
fn an_archive_is_the_same_after_skopeo_made_a_layout_of_it() {
    is_the_same_after_skopeo("oci::test", &[], None);
}

#[test]
fn an_archive_is_the_same_after_skopeo_made_an_oci_archive_of_it() {
    is_the_same_after_skopeo("oci-archive::test", &[], None);
}

#[test]
fn an_archive_is_the_same_after_skopeo_compressed_it_with_zstd() {
    is_the_same_after_skopeo(
        "oci::test",
        &["--dest-compress", "--dest-compress-format", "zstd"],
        None,
    );
}

#[test]
fn a_layout_of_ours_is_an_archive_of_skopeos() {
    for compression in [Compression::None, Compression::Gzip] {
        is_the_same_after_skopeo(
            "docker-archive::docker.io/library/test:1",
            &[],
            Some(compression),
        );
    }
}

#[test]
fn a_layout_of_ours_with_zstd_is_one_for_skopeo() {
    is_the_same_after_skopeo("oci::test", &[], Some(Compression::Zstd));
}

#[test]
fn the_web_server_image_is_the_same_each_time_it_is_made() {
    let bench = Bench::new();
    let image = |path: &Path| {
        sample::web_server(b"not really busybox".to_vec())
            .unwrap()
            .write_docker_archive(path)
            .unwrap();
        fs::read(path).unwrap()
    };
    assert_eq!(image(&bench.path("a.tar")), image(&bench.path("b.tar")));
    let imported = bench.store.import(&bench.path("a.tar")).unwrap();
    assert_eq!(imported[0].names, ["orlop-web:latest"]);
    let web = bench.store.resolve("orlop-web").unwrap();
    assert_eq!(
        web.config
            .config()
            .as_ref()
            .unwrap()
            .entrypoint()
            .as_ref()
            .unwrap(),
        &["/bin/start"]
    );
    assert_eq!(web.layers.len(), 2);
}

/// Mounts the image in `$1` (layers, topmost first) over `$2`, starts it twice on one `/data`, and fetches both its pages.
const SERVE: &str = r#"
set -e
busybox ip link set lo up
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
for start in 1 2; do
    env -i PATH=/bin /bin/busybox chroot "$2/root" /bin/start >&2 &
    until busybox wget -q -O - http://127.0.0.1/ 2>/dev/null; do
        kill -0 $!
    done
    busybox wget -q -O - http://127.0.0.1/cgi-bin/visit
    kill $!
    wait $! || true
done
"#;

#[test]
fn the_web_server_image_counts_its_starts_and_visits() {
    let busybox = fs::read("/bin/busybox").ok().filter(|_| is_root());
    let Some(busybox) = busybox else {
        eprintln!("SKIPPED: needs root and /bin/busybox");
        return;
    };
    let bench = Bench::new();
    let image = bench.load(&sample::web_server(busybox).unwrap()).unwrap();
    let layers: Vec<_> = image
        .layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let scratch = bench.path("scratch");
    fs::create_dir(&scratch).unwrap();
    let output = std::process::Command::new("timeout")
        .args([
            "60",
            "unshare",
            "-m",
            "-n",
            "-p",
            "-f",
            "--kill-child",
            "sh",
            "-c",
            SERVE,
            "sh",
        ])
        .arg(layers.join(":"))
        .arg(&scratch)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("starts:") || line.contains("visits:"))
        .collect();
    assert_eq!(
        lines,
        ["<p>starts: 1", "visits: 1", "<p>starts: 2", "visits: 2"]
    );
}
