//! A root that is there from the beginning: PID 1 is `init` at once, without the initramfs stage.

use orlop_qemu::bench::run_counted;
use orlop_qemu::console::Log;
use orlop_qemu::image::{self, Bare, Project};

const HELLO: &str = "[Unit]\nDescription=Says hello\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
    ExecStart=/bin/sh -c \"echo '<2>hello from '$(readlink /proc/1/exe) >/dev/kmsg\"\n\
    ExecStop=/bin/sh -c \"echo '<2>goodbye' >/dev/kmsg\"\n";
const END: &str = "[Unit]\nAfter=hello.service\nRequires=hello.service\n\n[Service]\nExecStart=/bin/sh -c \"kill -PWR 1\"\n";

#[test]
fn a_bare_root_runs_its_units_and_powers_off() {
    let products = orlop_tests::products();
    let project = Project::here();
    let directory = project.path("build/guests/test-bare");
    std::fs::create_dir_all(&directory).expect("a directory");
    let initrd = directory.join("bare.cpio");
    let contents = Bare {
        units: &[("hello.service", HELLO), ("end.service", END)],
        links: &[(
            "/etc/systemd/system/multi-user.target.wants/end.service",
            "../end.service",
        )],
        roles: &[],
        ..Bare::default()
    };
    image::bare(&project, &products.binary, &contents, &initrd).expect("an archive");
    let log = Log {
        path: directory.join("console.log"),
    };
    run_counted(&products.kernel, &initrd, &log)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", log.tail(30)));
    let said = log.text();
    let found = ["hello from /usr/bin/orlop", "goodbye", "reboot: Power down"].map(|words| {
        said.find(words)
            .unwrap_or_else(|| panic!("no {words:?}:\n{}", log.tail(40)))
    });
    assert!(found.is_sorted(), "{}", log.tail(40));
}
