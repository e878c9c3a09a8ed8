//! The configurations in `configs/`.

use orlop_config::{Input, Kind, compile, load};

use crate::{base, content, lines, link};

fn sample(name: &str) -> Input {
    let path = format!("{}/../../configs/{name}", env!("CARGO_MANIFEST_DIR"));
    let kind = if name.ends_with(".toml") {
        Kind::Toml
    } else {
        Kind::CloudConfig
    };
    Input {
        text: std::fs::read(&path).expect(&path),
        name: name.to_owned(),
        kind,
    }
}

#[test]
fn the_samples_have_no_problems() {
    for name in ["minimal.yaml", "demo.yaml", "demo.toml"] {
        let (machine, problems) = load(vec![sample(name)]);
        assert_eq!(lines(&problems), [""; 0]);
        assert_eq!(lines(&compile(&machine, &base()).problems), [""; 0]);
    }
}

#[test]
fn the_demo_is_the_same_machine_in_both_forms() {
    let (yaml, _) = load(vec![sample("demo.yaml")]);
    let (toml, _) = load(vec![sample("demo.toml")]);
    assert_eq!(yaml, toml);
    let (as_user_data, problems) = load(vec![Input {
        kind: Kind::CloudConfig,
        text: [b"#orlop\n".as_slice(), &sample("demo.toml").text].concat(),
        ..sample("demo.toml")
    }]);
    assert_eq!(lines(&problems), [""; 0]);
    assert_eq!(as_user_data, yaml);
}

#[test]
fn the_demo_starts_its_container() {
    let (machine, _) = load(vec![sample("demo.yaml")]);
    let plan = compile(&machine, &base());
    let file = "/etc/containers/systemd/web.container";
    assert!(content(&plan, file).contains("PublishPort=80:80"));
    assert_eq!(
        link(
            &plan,
            "/run/systemd/system/multi-user.target.wants/web.service"
        ),
        Some(file)
    );
}
