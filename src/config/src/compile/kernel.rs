//! Sysctls and the table of tracked connections.

use super::{Plan, PlannedSysctl};
use crate::machine::Machine;
use crate::problem::{Problem, Source, Sourced, quoted};

/// Where a sysctl comes from a module: the start of its key, and the module.
const MODULES: &[(&str, &str)] = &[
    ("net.netfilter.", "nf_conntrack"),
    ("net.nf_conntrack_max", "nf_conntrack"),
    ("net.bridge.", "br_netfilter"),
];

const MAX: &str = "net.netfilter.nf_conntrack_max";
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";

pub(super) fn compile(machine: &Machine, plan: &mut Plan) {
    let conntrack = &machine.conntrack;
    let keys = [
        (MAX, &conntrack.max),
        (
            "net.netfilter.nf_conntrack_generic_timeout",
            &conntrack.generic_timeout,
        ),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            &conntrack.tcp_timeout_established,
        ),
    ];
    for (key, value) in keys {
        if let Some(value) = value {
            set(key, &value.value.to_string(), &value.source, plan);
        }
    }
    for setting in &machine.sysctl.0 {
        set(
            &setting.key,
            &setting.value.value,
            &setting.value.source,
            plan,
        );
    }
    plan.conntrack_buckets = conntrack.buckets.clone().or_else(|| derived_buckets(plan));
    if let Some(buckets) = &plan.conntrack_buckets {
        if buckets.value == 0 {
            let problem = Problem::error(
                &buckets.source,
                "conntrack.buckets can not be 0; it is skipped",
            );
            plan.problems.push(problem);
            plan.conntrack_buckets = None;
        } else {
            need("nf_conntrack", plan);
        }
    }
}

/// A quarter of the limit, the kernel's own proportion (Documentation/networking/nf_conntrack-sysctl.rst), unless the
/// sysctls say otherwise. `conntrack` or a plain sysctl may have set the limit; the last one holds.
fn derived_buckets(plan: &Plan) -> Option<Sourced<u32>> {
    if plan.sysctls.iter().any(|sysctl| sysctl.key == BUCKETS) {
        return None;
    }
    let is_limit = |sysctl: &&PlannedSysctl| sysctl.path.ends_with("/nf_conntrack_max");
    let limit = plan.sysctls.iter().rev().find(is_limit)?;
    let value: u32 = limit.value.trim().parse().ok()?;
    (value > 0).then(|| Sourced {
        value: value.div_ceil(4),
        source: limit.source.clone(),
    })
}

fn set(key: &str, value: &str, source: &Source, plan: &mut Plan) {
    let Some(path) = path(key) else {
        let problem = Problem::error(
            source,
            format!("{} is not a sysctl's name; it is skipped", quoted(key)),
        );
        plan.problems.push(problem);
        return;
    };
    let dotted = key.replace('/', ".");
    for (start, module) in MODULES {
        if dotted.starts_with(start) {
            need(module, plan);
        }
    }
    plan.sysctls.push(PlannedSysctl {
        key: key.to_owned(),
        path,
        value: value.to_owned(),
        source: source.clone(),
    });
}

fn need(module: &str, plan: &mut Plan) {
    if !plan.modules.iter().any(|m| m == module) {
        plan.modules.push(module.to_owned());
    }
}

/// The file of a key. Dots and slashes are exchanged when a dot comes first, as in sysctl.d(5), so that names with
/// dots in them (`net.ipv4.conf.eth0/100.forwarding`) can be written.
fn path(key: &str) -> Option<String> {
    let swap = key
        .find(['.', '/'])
        .is_some_and(|at| key.as_bytes().get(at) == Some(&b'.'));
    let relative: String = key
        .chars()
        .map(|c| match c {
            '.' if swap => '/',
            '/' if swap => '.',
            other => other,
        })
        .collect();
    let is_name = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control)
    };
    relative
        .split('/')
        .all(is_name)
        .then(|| format!("/proc/sys/{relative}"))
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn a_sysctl_can_not_leave_its_directory() {
        assert_eq!(
            path("net.core.somaxconn").as_deref(),
            Some("/proc/sys/net/core/somaxconn")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.100/forwarding")
        );
        assert_eq!(path("kernel/../../sysrq-trigger"), None);
        assert_eq!(path("a.//.b"), None);
        assert_eq!(path("/etc/passwd"), None);
        assert_eq!(path(""), None);
    }
}
