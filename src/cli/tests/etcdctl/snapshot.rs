//! `etcdctl snapshot`: saved while others write, looked at, refused when damaged, restored as a new cluster.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use orlop_testing::Etcdctl;

use crate::sides::{Program, Server, Side};

/// The number behind a field of JSON.
fn number(json: &str, field: &str) -> u64 {
    let (_, rest) = json
        .split_once(&format!("\"{field}\":"))
        .unwrap_or_else(|| panic!("{json} has {field}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

fn good(side: &mut Side, words: &[&str]) -> String {
    let outcome = side.run_raw("3", words, "");
    assert_eq!(outcome.code, Some(0), "{words:?}: {outcome:?}");
    outcome.out
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_snapshot_holds_one_revision_and_is_restored_as_a_new_cluster() {
    let directory = tempfile::tempdir().expect("a directory");
    let before = directory.path().join("before");
    let after = directory.path().join("after");
    let file = directory.path().join("file.db");
    let debians = directory.path().join("debians.db");
    std::fs::create_dir(&before).expect("a directory");
    std::fs::create_dir(&after).expect("a directory");
    let mut side = Side::new(Program::Ours, Server::Ours, &before);
    good(&mut side, &["put", "first", "1"]);
    let granted = good(&mut side, &["lease", "grant", "1000"]);
    let lease = granted.split(' ').nth(1).expect("an id").to_owned();
    good(
        &mut side,
        &["put", "leased", "x", &format!("--lease={lease}")],
    );
    good(&mut side, &["put", "deleted", "x"]);
    good(&mut side, &["del", "deleted"]);
    // One key a revision, while the snapshot is taken.
    let base = number(
        &good(&mut side, &["get", "first", "-w", "json"]),
        "revision",
    );
    let stop = AtomicBool::new(false);
    let debians_program = Etcdctl::new(side.address());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let put = |n: u32| {
                let put = debians_program
                    .command(&["put", &format!("n/{n:04}"), "value"])
                    .output();
                assert!(
                    put.expect("it runs").status.success(),
                    "no writer is stopped"
                );
            };
            (0..1000)
                .take_while(|n| *n < 3 || !stop.load(Ordering::Relaxed))
                .for_each(put);
        });
        let said = good(&mut side, &["snapshot", "save", text(&file)]);
        assert_eq!(said, format!("Snapshot saved at {}\n", file.display()));
        stop.store(true, Ordering::Relaxed);
    });
    let status = good(
        &mut side,
        &["snapshot", "status", text(&file), "-w", "json"],
    );
    let revision = number(&status, "revision");
    let length = std::fs::metadata(&file).expect("it is there").len();
    assert_eq!(number(&status, "totalSize"), length);
    // Three keys and a deletion came before.
    assert_eq!(number(&status, "totalKey"), 4 + (revision - base));
    let old = good(
        &mut side,
        &["get", "n/", "--prefix", &format!("--rev={revision}")],
    );
    let cluster = number(
        &good(&mut side, &["get", "first", "-w", "json"]),
        "cluster_id",
    );

    // Debian's program takes it too.
    let saved = debians_program
        .command(&["snapshot", "save", text(&debians)])
        .output()
        .expect("it runs");
    assert!(saved.status.success(), "{saved:?}");
    good(
        &mut side,
        &["snapshot", "status", text(&debians), "-w", "table"],
    );
    drop(side);

    let bytes = std::fs::read(&file).expect("it is there");
    let broken = directory.path().join("broken.db");
    let data_dir = after.join("Ours");
    for (place, cut) in [
        (20, 0),
        (bytes.len() / 2, 0),
        (bytes.len() - 1, 0),
        (0, 1),
        (0, 600),
    ] {
        let mut wrong = bytes.clone();
        wrong.truncate(bytes.len() - cut);
        if cut == 0 {
            wrong[place] ^= 1;
        }
        std::fs::write(&broken, wrong).expect("it can be written");
        for words in [
            &["snapshot", "status", text(&broken)][..],
            &[
                "snapshot",
                "restore",
                text(&broken),
                "--data-dir",
                text(&data_dir),
            ],
        ] {
            let refused = Side::alone(words);
            assert_eq!(refused.code, Some(1), "{words:?} {place} {cut}");
            let why = format!("Error: the snapshot {} is damaged", broken.display());
            assert!(refused.errors.starts_with(&why), "{refused:?}");
            assert!(!data_dir.exists(), "nothing was begun");
        }
    }

    let restore = [
        "snapshot",
        "restore",
        text(&file),
        "--data-dir",
        text(&data_dir),
        "--name=one",
        "--initial-cluster=one=http://127.0.0.1:9",
        "--initial-advertise-peer-urls=http://127.0.0.1:9",
    ];
    let restored = Side::alone(&restore);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    let again = Side::alone(&restore);
    assert!(again.errors.contains("exists"), "{again:?}");

    let mut side = Side::new(Program::Ours, Server::Ours, &after);
    assert_eq!(good(&mut side, &["get", "n/", "--prefix"]), old);
    let first = good(&mut side, &["get", "first", "-w", "json"]);
    assert_eq!(number(&first, "revision"), revision);
    assert_ne!(number(&first, "cluster_id"), cluster, "it is a new cluster");
    let kept = good(&mut side, &["get", "leased", "-w", "json"]);
    assert_ne!(number(&kept, "lease"), 0);
    good(&mut side, &["lease", "revoke", &lease]);
    assert_eq!(good(&mut side, &["get", "leased"]), "");
    good(&mut side, &["put", "first", "2"]);
}

#[test]
fn the_revision_can_be_raised_and_what_lies_below_be_gone() {
    let directory = tempfile::tempdir().expect("a directory");
    let before = directory.path().join("before");
    let after = directory.path().join("after");
    let file = directory.path().join("file.db");
    std::fs::create_dir(&before).expect("a directory");
    std::fs::create_dir(&after).expect("a directory");
    let mut side = Side::new(Program::Ours, Server::Ours, &before);
    good(&mut side, &["put", "a", "1"]);
    good(&mut side, &["put", "a", "2"]);
    good(&mut side, &["snapshot", "save", text(&file)]);
    drop(side);
    let data_dir = after.join("Ours");
    let restored = Side::alone(&[
        "snapshot",
        "restore",
        text(&file),
        "--data-dir",
        text(&data_dir),
        "--bump-revision=1000",
        "--mark-compacted",
    ]);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    let mut side = Side::new(Program::Ours, Server::Ours, &after);
    let kept = good(&mut side, &["get", "a", "-w", "json"]);
    assert_eq!(number(&kept, "revision"), 1003);
    assert_eq!(number(&kept, "mod_revision"), 3);
    let old = side.run("3", &["get", "a", "--rev=3"], "");
    assert!(old.errors.contains("compacted"), "{old:?}");
    good(&mut side, &["put", "a", "3"]);
    assert_eq!(good(&mut side, &["get", "a", "--rev=1003"]), "a\n2\n");
}
