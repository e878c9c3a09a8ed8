//! Three machines that are one.

use std::time::Duration;

use orlop_qemu::demo::Steps;
use orlop_qemu::demo::three;
use orlop_qemu::image::Project;
use orlop_tests::{products, turn};

/// How long the page may be away, of which the machine is silent for 15 s before anything is decided.
const PAGE_AWAY: Duration = Duration::from_secs(25);

#[test]
fn three_machines_keep_a_page_when_one_loses_its_power() {
    let _turn = turn();
    let steps = Steps::begin();
    let told = three::tell(&steps, &Project::here(), products(), "test-cluster");
    let (_cluster, figures) = told.unwrap_or_else(|error| panic!("{error:#}"));
    println!(
        "test-cluster: page away for {:.1} s (host's clock)",
        figures.page_away.as_secs_f64()
    );
    assert!(figures.page_away <= PAGE_AWAY, "{figures:?}");
}
