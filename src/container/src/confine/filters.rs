//! The filters of system calls that a service's directives ask for, as programs of classic BPF.
//!
//! Each directive is a program of its own; the kernel runs all of them and obeys the strictest answer. Calls by another convention
//! than the machine's own are outside of what the numbers speak of: they answer `ENOSYS`, or kill where
//! `SystemCallArchitectures=` does not name them.

use orlop_sys::seccomp::Instruction;
use orlop_unit::confinement::{AddressFamilies, Architecture, Confinement, Namespaces};
use orlop_unit::syscall::{Answer, SystemCallFilter, resolve};

use crate::seccomp::{
    ARCHITECTURE, AUDIT_ARCH_X86_64, FIRST_ARGUMENT_LOW, JUMP_ANY_BIT, JUMP_AT_LEAST, JUMP_EQUAL,
    LOAD, NUMBER, RETURN, RETURN_ALLOW, RETURN_ENOSYS, RETURN_EPERM, instruction,
};

/// `AUDIT_ARCH_I386` of `include/uapi/linux/audit.h`.
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// `__X32_SYSCALL_BIT` of `arch/x86/include/uapi/asm/unistd.h`.
const X32: u32 = 0x4000_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
const RETURN_KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO`.
const RETURN_ERROR: u32 = 0x0005_0000;
const JUMP: u16 = 0x05;
const AND: u16 = 0x54;

/// The offset of argument `n`'s lower half in `struct seccomp_data`.
const fn argument(n: u32) -> u32 {
    FIRST_ARGUMENT_LOW + 8 * n
}

fn give(answer: u32) -> Instruction {
    instruction(RETURN, answer, 0, 0)
}

const fn error(number: i32) -> u32 {
    RETURN_ERROR | number as u32
}

/// One program, and the directive that asks for it.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) directive: &'static str,
    pub(super) program: Vec<Instruction>,
}

/// What becomes of one call: code that ends in an answer on every way.
type Rule = (u32, Vec<Instruction>);

fn call(number: libc::c_long) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Answers `foreign` to calls of other conventions, looks through `rules`, and allows the rest.
fn program(foreign: u32, rules: &[Rule]) -> Vec<Instruction> {
    let mut code = begin(foreign);
    for (number, rule) in rules {
        let length = u8::try_from(rule.len()).unwrap_or(u8::MAX);
        code.push(instruction(JUMP_EQUAL, *number, 0, length));
        code.extend(rule);
    }
    code.push(give(RETURN_ALLOW));
    code
}

/// Leaves the number of a call by the machine's own convention in the accumulator.
fn begin(foreign: u32) -> Vec<Instruction> {
    vec![
        instruction(LOAD, ARCHITECTURE, 0, 0),
        instruction(JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        give(foreign),
        instruction(LOAD, NUMBER, 0, 0),
        instruction(JUMP_AT_LEAST, X32, 0, 1),
        give(foreign),
    ]
}

/// `answer` when argument `n` has any bit of `mask`.
fn any_bit(n: u32, mask: u32, answer: u32) -> Vec<Instruction> {
    vec![
        instruction(LOAD, argument(n), 0, 0),
        instruction(JUMP_ANY_BIT, mask, 0, 1),
        give(answer),
        give(RETURN_ALLOW),
    ]
}

/// `answer` when argument `n` has all bits of `mask`.
fn all_bits(n: u32, mask: u32, answer: u32) -> Vec<Instruction> {
    vec![
        instruction(LOAD, argument(n), 0, 0),
        instruction(AND, mask, 0, 0),
        instruction(JUMP_EQUAL, mask, 0, 1),
        give(answer),
        give(RETURN_ALLOW),
    ]
}

/// `hit` when argument `n` is one of `values`, else `miss`.
fn one_of(n: u32, values: impl IntoIterator<Item = u32>, hit: u32, miss: u32) -> Vec<Instruction> {
    let mut code = vec![instruction(LOAD, argument(n), 0, 0)];
    for value in values {
        code.push(instruction(JUMP_EQUAL, value, 0, 1));
        code.push(give(hit));
    }
    code.push(give(miss));
    code
}

/// Why the filters cannot be made, in words.
pub(super) type Refusal = String;

/// The filters of `confinement`, in the order in which they are installed: the one that may refuse `seccomp(2)` itself comes last.
pub(super) fn filters(confinement: &Confinement) -> Result<Vec<Filter>, Refusal> {
    let mut filters = Vec::new();
    let mut add = |directive, rules: Vec<Rule>| {
        filters.push(Filter {
            directive,
            program: program(RETURN_ENOSYS, &rules),
        });
    };
    for (directive, is_set, set) in [
        ("PrivateDevices=", confinement.private_devices, "@raw-io"),
        (
            "ProtectKernelModules=",
            confinement.protect_kernel_modules,
            "@module",
        ),
        (
            "ProtectKernelLogs=",
            confinement.protect_kernel_logs,
            "syslog",
        ),
        ("ProtectClock=", confinement.protect_clock, "@clock"),
        (
            "ProtectHostname=",
            confinement.protect_hostname,
            "sethostname",
        ),
        (
            "ProtectHostname=",
            confinement.protect_hostname,
            "setdomainname",
        ),
    ] {
        if is_set {
            let numbers = resolve(set).unwrap_or_default();
            let refuse = |number| (number, vec![give(RETURN_EPERM)]);
            add(directive, numbers.into_iter().map(refuse).collect());
        }
    }
    if let Some(families) = &confinement.restrict_address_families {
        add("RestrictAddressFamilies=", address_families(families));
    }
    if let Some(allowed) = confinement.restrict_namespaces {
        add("RestrictNamespaces=", namespaces(allowed));
    }
    if confinement.restrict_realtime {
        add("RestrictRealtime=", realtime());
    }
    if confinement.restrict_suid_sgid {
        add("RestrictSUIDSGID=", file_modes());
    }
    if confinement.lock_personality {
        // 0xffff_ffff asks and changes nothing.
        let rule = one_of(0, [0, u32::MAX], RETURN_ALLOW, RETURN_EPERM);
        add(
            "LockPersonality=",
            vec![(call(libc::SYS_personality), rule)],
        );
    }
    if confinement.memory_deny_write_execute {
        add("MemoryDenyWriteExecute=", memory());
    }
    if let Some(filter) = &confinement.system_call_filter {
        let default = confinement.system_call_answer.unwrap_or(Answer::Kill);
        filters.push(Filter {
            directive: "SystemCallFilter=",
            program: system_calls(filter, default),
        });
    }
    if let Some(architectures) = &confinement.system_call_architectures {
        let foreign = architectures
            .iter()
            .any(|a| matches!(a, Architecture::X86 | Architecture::X32));
        if foreign && !filters.is_empty() {
            return Err(
                "SystemCallArchitectures= allows x86 or x32, whose calls the other filters of the unit cannot tell apart"
                    .to_owned(),
            );
        }
        filters.insert(
            0,
            Filter {
                directive: "SystemCallArchitectures=",
                program: self::architectures(architectures),
            },
        );
    }
    Ok(filters)
}

fn architectures(allowed: &[Architecture]) -> Vec<Instruction> {
    let answer = |architecture| {
        give(if allowed.contains(&architecture) {
            RETURN_ALLOW
        } else {
            RETURN_KILL
        })
    };
    vec![
        instruction(LOAD, ARCHITECTURE, 0, 0),
        instruction(JUMP_EQUAL, AUDIT_ARCH_I386, 0, 1),
        answer(Architecture::X86),
        instruction(JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        give(RETURN_KILL),
        instruction(LOAD, NUMBER, 0, 0),
        instruction(JUMP_AT_LEAST, X32, 0, 1),
        answer(Architecture::X32),
        give(RETURN_ALLOW),
    ]
}

fn address_families(list: &AddressFamilies) -> Vec<Rule> {
    let refused = error(libc::EAFNOSUPPORT);
    let (hit, miss) = if list.allow_list {
        (RETURN_ALLOW, refused)
    } else {
        (refused, RETURN_ALLOW)
    };
    let families = list.families.iter().copied().map(u32::from);
    vec![(call(libc::SYS_socket), one_of(0, families, hit, miss))]
}

fn namespaces(allowed: Namespaces) -> Vec<Rule> {
    let denied = Namespaces::ALL.0 & !allowed.0;
    let refuse = |n| any_bit(n, denied, RETURN_EPERM);
    // Without a type setns(2) takes a descriptor of any.
    let mut join = vec![
        instruction(LOAD, argument(1), 0, 0),
        instruction(JUMP_EQUAL, 0, 0, 1),
        give(RETURN_EPERM),
    ];
    join.extend(refuse(1));
    vec![
        (call(libc::SYS_clone), refuse(0)),
        (call(libc::SYS_unshare), refuse(0)),
        (call(libc::SYS_setns), join),
        // Its flags lie in memory, out of a filter's sight; C libraries fall back to clone(2).
        (call(libc::SYS_clone3), vec![give(RETURN_ENOSYS)]),
    ]
}

fn realtime() -> Vec<Rule> {
    /// `SCHED_RESET_ON_FORK`, which may be added to any policy.
    const POLICY: u32 = !0x4000_0000;
    let mut rule = vec![
        instruction(LOAD, argument(1), 0, 0),
        instruction(AND, POLICY, 0, 0),
    ];
    // SCHED_OTHER, SCHED_BATCH, SCHED_IDLE.
    for policy in [0, 3, 5] {
        rule.push(instruction(JUMP_EQUAL, policy, 0, 1));
        rule.push(give(RETURN_ALLOW));
    }
    rule.push(give(RETURN_EPERM));
    vec![
        (call(libc::SYS_sched_setscheduler), rule),
        // The policy lies in memory.
        (call(libc::SYS_sched_setattr), vec![give(RETURN_EPERM)]),
    ]
}

fn file_modes() -> Vec<Rule> {
    const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
    /// `O_CREAT` and the bit of `O_TMPFILE` that is its own.
    const MAKES: u32 = 0o100 | 0o20_000_000;
    let mode = |n| any_bit(n, SET_ID, RETURN_EPERM);
    // The mode counts only where a file may be made.
    let opened = |flags: u32, n: u32| {
        let mut code = vec![
            instruction(LOAD, argument(flags), 0, 0),
            instruction(JUMP_ANY_BIT, MAKES, 1, 0),
            give(RETURN_ALLOW),
        ];
        code.extend(mode(n));
        code
    };
    vec![
        (call(libc::SYS_chmod), mode(1)),
        (call(libc::SYS_fchmod), mode(1)),
        (call(libc::SYS_fchmodat), mode(2)),
        (call(libc::SYS_fchmodat2), mode(2)),
        (call(libc::SYS_mkdir), mode(1)),
        (call(libc::SYS_mkdirat), mode(2)),
        (call(libc::SYS_mknod), mode(1)),
        (call(libc::SYS_mknodat), mode(2)),
        (call(libc::SYS_creat), mode(1)),
        (call(libc::SYS_open), opened(1, 2)),
        (call(libc::SYS_openat), opened(2, 3)),
        // Its flags lie in memory; C libraries and programs fall back to openat(2).
        (call(libc::SYS_openat2), vec![give(RETURN_ENOSYS)]),
    ]
}

fn memory() -> Vec<Rule> {
    const WRITE_EXECUTE: u32 = (libc::PROT_WRITE | libc::PROT_EXEC) as u32;
    const EXECUTE: u32 = libc::PROT_EXEC as u32;
    /// `SHM_EXEC` of `include/uapi/linux/shm.h`.
    const SHARED_EXECUTE: u32 = 0o100_000;
    vec![
        (
            call(libc::SYS_mmap),
            all_bits(2, WRITE_EXECUTE, RETURN_EPERM),
        ),
        (call(libc::SYS_mprotect), any_bit(2, EXECUTE, RETURN_EPERM)),
        (
            call(libc::SYS_pkey_mprotect),
            any_bit(2, EXECUTE, RETURN_EPERM),
        ),
        (
            call(libc::SYS_shmat),
            any_bit(2, SHARED_EXECUTE, RETURN_EPERM),
        ),
    ]
}

/// The number of the last call that there can be, as far as this knows; what comes behind has the default's answer.
const LAST: u32 = 1023;

fn system_calls(filter: &SystemCallFilter, default: Answer) -> Vec<Instruction> {
    let code = |answer: Answer| match answer {
        Answer::Kill => RETURN_KILL,
        Answer::Error(number) => error(i32::from(number)),
    };
    let answer = |number: u32| match (filter.calls.get(&number), filter.allow_list) {
        (Some(Some(own)), _) => code(*own),
        (Some(None), true) | (None, false) => RETURN_ALLOW,
        (Some(None), false) | (None, true) => code(default),
    };
    // Runs of numbers that share an answer, searched by halves.
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in 0..=LAST.saturating_add(1) {
        let answer = answer(number);
        if runs.last().is_none_or(|(_, last)| *last != answer) {
            runs.push((number, answer));
        }
    }
    let mut program = begin(RETURN_ENOSYS);
    search(&runs, &mut program);
    program
}

fn search(runs: &[(u32, u32)], program: &mut Vec<Instruction>) {
    let (left, right) = runs.split_at(runs.len() / 2);
    let (Some(_), Some((middle, _))) = (left.first(), right.first()) else {
        program.push(give(
            right.first().map_or(RETURN_ALLOW, |(_, answer)| *answer),
        ));
        return;
    };
    // A long way to jump: only the unconditional jump has room for it.
    program.push(instruction(JUMP_AT_LEAST, *middle, 0, 1));
    let jump = program.len();
    program.push(instruction(JUMP, 0, 0, 0));
    search(left, program);
    let distance = program.len().saturating_sub(jump).saturating_sub(1);
    if let Some(jump) = program.get_mut(jump) {
        jump.operand = u32::try_from(distance).unwrap_or(u32::MAX);
    }
    search(right, program);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program answers: a small interpreter of its operations.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: &[u32]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => {
                    accumulator = match i.operand {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        other => arguments[(other - FIRST_ARGUMENT_LOW) as usize / 8],
                    }
                }
                AND => accumulator &= i.operand,
                JUMP => at += i.operand as usize,
                JUMP_EQUAL => at += jump(accumulator == i.operand),
                JUMP_AT_LEAST => at += jump(accumulator >= i.operand),
                JUMP_ANY_BIT => at += jump(accumulator & i.operand != 0),
                RETURN => return i.operand,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    /// The strictest answer of all filters, as the kernel has it: a kill, then an error, then consent.
    fn decide(confinement: &Confinement, number: libc::c_long, arguments: &[u32]) -> u32 {
        let filters = filters(confinement).unwrap();
        let answers = filters
            .iter()
            .map(|f| run(&f.program, AUDIT_ARCH_X86_64, call(number), arguments));
        answers
            .min_by_key(|answer| (*answer).cast_signed())
            .unwrap_or(RETURN_ALLOW)
    }

    fn with(change: impl FnOnce(&mut Confinement)) -> Confinement {
        let mut confinement = Confinement::default();
        change(&mut confinement);
        confinement
    }

    #[test]
    fn namespaces_that_are_not_allowed_are_refused_in_every_way_to_them() {
        let only_net = with(|c| c.restrict_namespaces = Some(Namespaces(0x4000_0000)));
        let (net, user) = (0x4000_0000, 0x1000_0000);
        assert_eq!(decide(&only_net, libc::SYS_unshare, &[net]), RETURN_ALLOW);
        assert_eq!(decide(&only_net, libc::SYS_unshare, &[user]), RETURN_EPERM);
        assert_eq!(
            decide(&only_net, libc::SYS_clone, &[user | 17]),
            RETURN_EPERM
        );
        assert_eq!(decide(&only_net, libc::SYS_setns, &[3, 0]), RETURN_EPERM);
        assert_eq!(decide(&only_net, libc::SYS_setns, &[3, net]), RETURN_ALLOW);
        assert_eq!(decide(&only_net, libc::SYS_clone3, &[]), RETURN_ENOSYS);
    }

    #[test]
    fn modes_memory_and_policies_are_looked_into() {
        let all = with(|c| {
            c.restrict_suid_sgid = true;
            c.memory_deny_write_execute = true;
            c.restrict_realtime = true;
            c.lock_personality = true;
        });
        let creates = 0o100;
        assert_eq!(decide(&all, libc::SYS_chmod, &[0, 0o4755]), RETURN_EPERM);
        assert_eq!(decide(&all, libc::SYS_chmod, &[0, 0o755]), RETURN_ALLOW);
        assert_eq!(
            decide(&all, libc::SYS_openat, &[0, 0, creates, 0o2755]),
            RETURN_EPERM
        );
        assert_eq!(
            decide(&all, libc::SYS_openat, &[0, 0, 0, 0o2755]),
            RETURN_ALLOW
        );
        assert_eq!(decide(&all, libc::SYS_mmap, &[0, 0, 6]), RETURN_EPERM);
        assert_eq!(decide(&all, libc::SYS_mmap, &[0, 0, 5]), RETURN_ALLOW);
        assert_eq!(decide(&all, libc::SYS_mprotect, &[0, 0, 4]), RETURN_EPERM);
        assert_eq!(
            decide(&all, libc::SYS_sched_setscheduler, &[0, 1]),
            RETURN_EPERM
        );
        assert_eq!(
            decide(&all, libc::SYS_sched_setscheduler, &[0, 0x4000_0003]),
            RETURN_ALLOW
        );
        assert_eq!(decide(&all, libc::SYS_personality, &[8]), RETURN_EPERM);
        assert_eq!(
            decide(&all, libc::SYS_personality, &[u32::MAX]),
            RETURN_ALLOW
        );
    }

    #[test]
    fn the_list_of_calls_is_obeyed_for_every_number() {
        for allow_list in [false, true] {
            let mut calls: std::collections::BTreeMap<u32, Option<Answer>> =
                resolve("@system-service")
                    .unwrap()
                    .into_iter()
                    .map(|number| (number, None))
                    .collect();
            calls.insert(83, Some(Answer::Error(13)));
            let confinement = with(|c| {
                c.system_call_filter = Some(SystemCallFilter {
                    allow_list,
                    calls: calls.clone(),
                });
            });
            let program = &filters(&confinement).unwrap()[0].program;
            assert!(program.len() < 4096);
            for number in 0..=LAST + 100 {
                let expected = match (calls.get(&number), allow_list) {
                    (Some(Some(_)), _) => error(13),
                    (found, _) if found.is_some() == allow_list => RETURN_ALLOW,
                    _ => RETURN_KILL,
                };
                let answer = run(program, AUDIT_ARCH_X86_64, number, &[]);
                assert_eq!(answer, expected, "{number} {allow_list}");
            }
            assert_eq!(run(program, AUDIT_ARCH_I386, 11, &[]), RETURN_ENOSYS);
            assert_eq!(run(program, AUDIT_ARCH_X86_64, X32 | 1, &[]), RETURN_ENOSYS);
        }
    }

    #[test]
    fn families_are_allowed_or_refused_as_the_list_says() {
        let list = |allow_list| {
            with(|c| {
                c.restrict_address_families = Some(AddressFamilies {
                    allow_list,
                    families: [1, 2].into(),
                });
            })
        };
        let refused = error(libc::EAFNOSUPPORT);
        for (allow_list, family, answer) in [
            (true, 2, RETURN_ALLOW),
            (true, 16, refused),
            (false, 2, refused),
            (false, 16, RETURN_ALLOW),
        ] {
            assert_eq!(
                decide(&list(allow_list), libc::SYS_socket, &[family]),
                answer
            );
        }
    }

    #[test]
    fn other_architectures_are_killed_or_refused_as_a_whole() {
        let native = with(|c| c.system_call_architectures = Some(vec![Architecture::Native]));
        let program = &filters(&native).unwrap()[0].program;
        assert_eq!(run(program, AUDIT_ARCH_I386, 1, &[]), RETURN_KILL);
        assert_eq!(run(program, AUDIT_ARCH_X86_64, X32 | 1, &[]), RETURN_KILL);
        assert_eq!(run(program, AUDIT_ARCH_X86_64, 1, &[]), RETURN_ALLOW);
        let both = with(|c| {
            c.system_call_architectures = Some(vec![Architecture::Native, Architecture::X86]);
            c.lock_personality = true;
        });
        assert!(filters(&both).unwrap_err().contains("x86"));
    }
}
