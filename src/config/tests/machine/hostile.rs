//! Whatever the input is, there is a machine, and every problem is one line.

use orlop_config::{Input, Kind, compile, load};
use proptest::prelude::*;

use crate::{base, read};

fn check(kind: Kind, text: Vec<u8>) {
    let (machine, problems) = load(vec![Input {
        name: "input".to_owned(),
        kind,
        text,
    }]);
    let plan = compile(&machine, &base());
    for problem in problems.iter().chain(&plan.problems) {
        let line = problem.to_string();
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
    for file in &plan.files {
        assert!(
            file.path.starts_with('/') && !file.path.split('/').any(|part| part == ".."),
            "{}",
            file.path
        );
    }
    for link in &plan.links {
        assert!(
            !link.path.split('/').any(|part| part == ".."),
            "{}",
            link.path
        );
    }
}

const KINDS: [Kind; 4] = [
    Kind::CloudConfig,
    Kind::MetaData,
    Kind::Toml,
    Kind::KernelCommandLine,
];

/// Pieces that lead deep into the keys and the syntax.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "hostname",
        "data",
        "disk",
        "wipe",
        "sysctl",
        "conntrack",
        "max",
        "network",
        "interfaces",
        "addresses",
        "users",
        "name",
        "passwd",
        "write_files",
        "path",
        "content",
        "permissions",
        "encoding",
        "coreos",
        "units",
        "drop-ins",
        "enable",
        "true",
        "command",
        "start",
        "a.container",
        "/etc/x",
        "../..",
        "0644",
        "gz+b64",
        ": ",
        ":\n",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "|\n",
        "&a ",
        "*a",
        "<<: ",
        "!!binary ",
        " = ",
        "[[",
        "]]",
        "#",
        "\t",
        "\u{85}",
        "\0",
        "é",
        "orlop.",
        "=",
        "-1",
        "99999999999",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_give_a_machine(text in prop::collection::vec(any::<u8>(), 0..300), kind in prop::sample::select(&KINDS[..])) {
        check(kind, text);
    }

    #[test]
    fn any_mixture_of_known_words_gives_a_machine(text in pieces(), kind in prop::sample::select(&KINDS[..])) {
        check(kind, text.clone().into_bytes());
        check(Kind::CloudConfig, format!("#cloud-config\n{text}").into_bytes());
    }

    #[test]
    fn a_sample_with_a_piece_cut_out_gives_a_machine(at in 0_usize..1200, length in 0_usize..40) {
        let mut text = include_bytes!("../../../../configs/demo.yaml").to_vec();
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        text.drain(at..end);
        check(Kind::CloudConfig, text);
    }
}

#[test]
fn aliases_that_multiply_are_cut_off() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let before = i - 1;
        text += &format!(
            "a{i}: &a{i} [{}]\n",
            vec![format!("*a{before}"); 10].join(", ")
        );
    }
    let (_, problems) = read(&text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("aliases expand to more than"),
        "{}",
        problems[0]
    );
}

#[test]
fn nesting_without_end_is_cut_off() {
    for text in [
        "[".repeat(100_000),
        "- ".repeat(100_000),
        "a: ".repeat(50_000),
    ] {
        let (_, problems) = read(&text);
        assert_eq!(problems.len(), 1, "{}", problems.len());
    }
}

#[test]
fn a_compressed_bomb_is_cut_off() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(b' '), 64 << 20),
        &mut encoder,
    )
    .expect("memory");
    let (_, problems) = load(vec![Input {
        name: "user-data".to_owned(),
        kind: Kind::CloudConfig,
        text: encoder.finish().expect("memory"),
    }]);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].to_string().contains("unpacks to more than"),
        "{}",
        problems[0]
    );
}
