//! `etcdctl` beside Debian's (packages etcd-client and etcd-server): the same commands, the same outputs and exit codes, on our
//! store and on etcd.

mod commands;
mod discovery;
mod sides;
mod snapshot;

use std::ffi::OsString;
use std::process::ExitCode;

use commands::{FAILING, STREAMS, TLS, TLS_FAILING, V2, V3};
use sides::{ARGUMENTS, MARK, Program, Server, Side};

/// The program itself, when this binary is started by one of the tests; else nothing.
#[test]
fn process() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let words: Vec<OsString> = arguments.split('\x1f').map(OsString::from).collect();
    print!("{MARK}");
    let code = orlop_cli::run(words);
    // Past the test harness, which would say something of its own.
    let number = (0..=u8::MAX).find(|n| ExitCode::from(*n) == code);
    std::process::exit(number.unwrap_or_default().into())
}

/// Debian's on one store, ours on another one with the same ids.
fn sides(server: Server, directory: &std::path::Path) -> [Side; 2] {
    [Program::Debians, Program::Ours].map(|program| Side::new(program, server, directory))
}

fn compare(server: Server, api: &str, commands: &[(&[&str], &str)]) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sides = sides(server, directory.path());
    let mut differences = Vec::new();
    for (words, input) in commands {
        let [debians, ours] = sides.each_mut().map(|side| side.run(api, words, input));
        if debians != ours {
            differences.push(format!(
                "{words:?} {input:?}\n  Debian's {debians:?}\n  ours     {ours:?}"
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn v3_commands_print_on_our_store_what_debians_print() {
    compare(Server::Ours, "3", V3);
}

#[test]
fn v3_commands_print_on_etcd_what_debians_print() {
    compare(Server::Etcd, "3", V3);
}

#[test]
fn v2_commands_print_on_our_store_what_debians_print() {
    compare(Server::Ours, "2", V2);
}

#[test]
fn v2_commands_print_on_etcd_what_debians_print() {
    compare(Server::Etcd, "2", V2);
}

#[test]
fn wrong_commands_end_with_the_same_code() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sides = sides(Server::Ours, directory.path());
    for (api, words) in FAILING {
        let [debians, ours] = sides.each_mut().map(|side| side.run(api, words, "").code);
        assert_eq!(debians, ours, "{api} {words:?}");
        assert_ne!(ours, Some(0), "{api} {words:?}");
    }
}

#[test]
fn what_goes_on_for_ever_prints_what_debians_prints() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sides = sides(Server::Ours, directory.path());
    for side in &mut sides {
        for (key, value) in [("a", "1"), ("a", "2"), ("dir/x", "y")] {
            let put = side.run("3", &["put", key, value], "");
            assert_eq!(put.code, Some(0), "{put:?}");
        }
        side.run("3", &["lease", "grant", "1000"], "");
        side.run("3", &["del", "a"], "");
        side.run("2", &["set", "/two/x", "1"], "");
        side.run("2", &["set", "/two/x", "2"], "");
    }
    for (api, words, lines) in STREAMS {
        let [debians, ours] = sides.each_mut().map(|side| side.stream(api, words, *lines));
        assert_eq!(debians, ours, "{api} {words:?}");
    }
}

#[test]
fn commands_by_tls_print_what_debians_print() {
    for server in [Server::Ours, Server::Etcd] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sides = [Program::Debians, Program::Ours]
            .map(|program| Side::with_tls(program, server, directory.path()));
        for (api, words, input) in TLS {
            let [debians, ours] = sides.each_mut().map(|side| side.run(api, words, input));
            assert_eq!(debians, ours, "{server:?} {api} {words:?}");
            let taken = words[0] == "mk";
            assert_eq!(
                ours.code == Some(0),
                !taken,
                "{server:?} {words:?}: {ours:?}"
            );
        }
        for (api, words) in TLS_FAILING {
            let [debians, ours] = sides.each_mut().map(|side| side.run(api, words, ""));
            assert_eq!(
                debians.code, ours.code,
                "{server:?} {api} {words:?}: {ours:?}"
            );
            assert_ne!(ours.code, Some(0), "{server:?} {api} {words:?}");
        }
    }
}
