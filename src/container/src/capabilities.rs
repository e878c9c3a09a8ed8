//! Capabilities by name and number, and the set that a container has unless told otherwise.

use orlop_unit::Capabilities;

const NAMES: [&str; 41] = Capabilities::NAMES;

/// How many capabilities there are.
pub(crate) const COUNT: u32 = NAMES.len() as u32;

/// All capabilities.
pub const ALL_CAPABILITIES: u64 = (1 << COUNT) - 1;

/// What a container has by default, as Docker's users expect: bit n is capability number n.
///
/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 13
    | 1 << 18
    | 1 << 27
    | 1 << 29
    | 1 << 31;

/// The bit of a capability's name: `NET_ADMIN`, `net_admin` and `CAP_NET_ADMIN` are one.
#[must_use]
pub fn parse_capability(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .iter()
        .position(|n| *n == bare)
        .map(|number| 1 << number)
}

/// The set that `--cap-add` and `--cap-drop` leave of the default one; `ALL` stands for all.
///
/// # Errors
/// The first name that is no capability.
pub fn adjust_capabilities(add: &[String], drop: &[String]) -> Result<u64, String> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    let bits = |names: &[String]| {
        names
            .iter()
            .filter(|name| !is_all(name))
            .try_fold(0, |set, name| {
                parse_capability(name)
                    .map(|bit| set | bit)
                    .ok_or_else(|| name.clone())
            })
    };
    let mut set = DEFAULT_CAPABILITIES;
    if drop.iter().any(is_all) {
        set = 0;
    }
    if add.iter().any(is_all) {
        set = ALL_CAPABILITIES;
    }
    Ok((set & !bits(drop)?) | bits(add)?)
}

/// The names, with `CAP_`, of the capabilities in `set`.
pub fn capability_names(set: u64) -> impl Iterator<Item = String> {
    (0..COUNT)
        .filter(move |number| set >> number & 1 == 1)
        .filter_map(|number| NAMES.get(number as usize).map(|name| format!("CAP_{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn names_are_taken_as_docker_takes_them() {
        assert_eq!(parse_capability("net_admin"), Some(1 << 12));
        assert_eq!(parse_capability("CAP_BPF"), Some(1 << 39));
        assert_eq!(parse_capability("CAP_"), None);
    }

    #[test]
    fn dropping_all_and_adding_one_leaves_one() {
        assert_eq!(
            adjust_capabilities(&list(&["NET_BIND_SERVICE"]), &list(&["ALL"])),
            Ok(1 << 10)
        );
        assert_eq!(
            adjust_capabilities(&[], &list(&["MKNOD"])),
            Ok(DEFAULT_CAPABILITIES & !(1 << 27))
        );
        assert_eq!(
            adjust_capabilities(&list(&["all"]), &list(&["SYS_ADMIN"])),
            Ok(ALL_CAPABILITIES & !(1 << 21))
        );
        assert_eq!(
            adjust_capabilities(&list(&["FLY"]), &[]),
            Err("FLY".to_owned())
        );
    }

    #[test]
    fn the_default_set_is_dockers() {
        // CapEff of a process in a container of Docker's.
        assert_eq!(DEFAULT_CAPABILITIES, 0xa804_25fb);
    }
}
