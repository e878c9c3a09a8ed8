//! Addresses that the configuration gives, and a configuration of the least size.

use orlop_tests::{Scenario, project_file};

#[test]
fn a_fixed_address_is_used_as_it_is_written() {
    // QEMU's own network is 10.0.2.0/24 with its router at .2, and forwards ports to .15.
    let user_data = "#cloud-config\n\
        hostname: moored\n\
        network:\n  \
          interfaces:\n    \
            - name: eth0\n      \
              addresses: [10.0.2.15/24, 10.9.8.7/32]\n      \
              gateway: 10.0.2.2\n      \
              routes:\n        \
                - to: 192.0.2.0/24\n          \
                  via: 10.0.2.3\n  \
          nameservers: [10.0.2.3]\n  \
          search: [ship.example]\n";
    let mut moored = Scenario::start("test-fixed-address", user_data, |_| Ok(()));
    moored.need("core gets in at the fixed address", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    moored.command(
        "both addresses are there",
        "/bin/busybox ip -4 addr show dev eth0",
        |text| text.contains("10.0.2.15/24") && text.contains("10.9.8.7/32"),
    );
    moored.command("the routes are there", "/bin/busybox ip route", |text| {
        text.contains("default via 10.0.2.2 dev eth0") && text.contains("192.0.2.0/24 via 10.0.2.3")
    });
    moored.command("the resolver is told", "cat /etc/resolv.conf", |text| {
        text.contains("nameserver 10.0.2.3") && text.contains("search ship.example")
    });
    moored.power_off();
    moored.finish();
}

#[test]
fn the_least_configuration_makes_a_machine_in_memory() {
    let mut least = Scenario::start(
        "test-minimal",
        &project_file("configs/minimal.yaml"),
        |machine| {
            machine.data_bytes = None;
            Ok(())
        },
    );
    least.need("core gets in by DHCP", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    least.command("it has its name", "hostname", |name| name.trim() == "orlop");
    least.command("/var is in memory", "grep ' /var ' /proc/mounts", |text| {
        text.contains(" tmpfs ")
    });
    least.command(
        "the example's key is let in beside ours",
        "sudo cat /home/core/.ssh/authorized_keys",
        |text| text.contains("example@nowhere") && text.contains("orlop"),
    );
    least.power_off();
    least.finish();
}
