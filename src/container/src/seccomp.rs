//! The seccomp filter: a compiler from the table of [`crate::syscalls`] to classic BPF.
//!
//! It is a `const fn`: the filter of a container with the default capabilities is a constant of the binary. Others are
//! compiled at start, which takes microseconds.
//!
//! The program searches the number by halves among runs of numbers that share an answer. Answers: allowed; `EPERM` for a
//! known call that is not allowed; `ENOSYS` for `clone3` (its flags lie in memory, out of a filter's sight, and C libraries
//! fall back to `clone`) and for numbers that are newer than the table. Calls by the 32-bit and x32 conventions answer `ENOSYS`.

use orlop_sys::seccomp::Instruction;

use crate::capabilities::DEFAULT_CAPABILITIES;
use crate::syscalls::{
    ALLOWED, ALLOWED_BY_CAPABILITY, CLONE_NAMESPACES, LAST_KNOWN, PERSONALITIES, SYS_ADMIN, VSOCK,
};

/// Which filter a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// The built-in one.
    #[default]
    Default,
    /// None (`--security-opt seccomp=unconfined`, `--privileged`).
    Unconfined,
}

/// A compiled filter.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    instructions: [Instruction; CAPACITY],
    length: usize,
}

/// More than any set of capabilities needs; a test compiles them all.
const CAPACITY: usize = 400;

/// The filter of containers with the default capabilities.
static DEFAULT_FILTER: Filter = Filter::compile(DEFAULT_CAPABILITIES);

// Offsets in `struct seccomp_data` (`include/uapi/linux/seccomp.h`).
pub(crate) const NUMBER: u32 = 0;
pub(crate) const ARCHITECTURE: u32 = 4;
pub(crate) const FIRST_ARGUMENT_LOW: u32 = 16;

/// `include/uapi/linux/audit.h`.
pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

// `include/uapi/linux/bpf_common.h`.
pub(crate) const LOAD: u16 = 0x20;
pub(crate) const RETURN: u16 = 0x06;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_AT_LEAST: u16 = 0x35;
pub(crate) const JUMP_ANY_BIT: u16 = 0x45;

// `SECCOMP_RET_*`.
pub(crate) const RETURN_ALLOW: u32 = 0x7fff_0000;
pub(crate) const RETURN_EPERM: u32 = 0x0005_0000 | libc::EPERM as u32;
pub(crate) const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allow,
    Refuse,
    Unknown,
    CheckClone,
    CheckPersonality,
    CheckSocket,
}

impl Filter {
    /// The filter for a container with `capabilities` (bit n is capability number n).
    #[must_use]
    pub const fn compile(capabilities: u64) -> Self {
        let answers = answers(capabilities);
        // Runs of equal answers: the first number of each.
        let mut starts = [0_u32; LAST_KNOWN as usize + 2];
        let mut runs = 1;
        let mut number = 1;
        while number <= LAST_KNOWN + 1 {
            if answers[number as usize] as u8 != answers[number as usize - 1] as u8 {
                starts[runs] = number;
                runs += 1;
            }
            number += 1;
        }
        let filter = Self {
            instructions: [instruction(0, 0, 0, 0); CAPACITY],
            length: 0,
        };
        filter
            .with(instruction(LOAD, ARCHITECTURE, 0, 0))
            .with(instruction(JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0))
            .with(instruction(RETURN, RETURN_ENOSYS, 0, 0))
            .with(instruction(LOAD, NUMBER, 0, 0))
            .with_search(&answers, &starts, 0, runs)
    }

    /// The filter for `capabilities`, ready-made for the default set.
    #[must_use]
    pub fn for_capabilities(capabilities: u64) -> Self {
        if capabilities == DEFAULT_CAPABILITIES {
            DEFAULT_FILTER
        } else {
            Self::compile(capabilities)
        }
    }

    /// The program.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        self.instructions.get(..self.length).unwrap_or_default()
    }

    const fn with(mut self, instruction: Instruction) -> Self {
        self.instructions[self.length] = instruction;
        self.length += 1;
        self
    }

    /// Code that finds the answer of the loaded number among runs `from..to`.
    const fn with_search(self, answers: &Answers, starts: &[u32], from: usize, to: usize) -> Self {
        if to - from == 1 {
            return self.with_answer(answers[starts[from] as usize]);
        }
        let middle = from + (to - from) / 2;
        let branch = self.length;
        let mut filter = self
            .with(instruction(JUMP_AT_LEAST, starts[middle], 0, 0))
            .with_search(answers, starts, from, middle);
        let distance = filter.length - branch - 1;
        assert!(
            distance <= u8::MAX as usize,
            "a jump in the filter is too long"
        );
        filter.instructions[branch].jump_true = distance as u8;
        filter.with_search(answers, starts, middle, to)
    }

    const fn with_answer(self, answer: Answer) -> Self {
        match answer {
            Answer::Allow => self.with(instruction(RETURN, RETURN_ALLOW, 0, 0)),
            Answer::Refuse => self.with(instruction(RETURN, RETURN_EPERM, 0, 0)),
            Answer::Unknown => self.with(instruction(RETURN, RETURN_ENOSYS, 0, 0)),
            Answer::CheckClone => self
                .with(instruction(LOAD, FIRST_ARGUMENT_LOW, 0, 0))
                .with(instruction(JUMP_ANY_BIT, CLONE_NAMESPACES, 0, 1))
                .with(instruction(RETURN, RETURN_EPERM, 0, 0))
                .with(instruction(RETURN, RETURN_ALLOW, 0, 0)),
            Answer::CheckSocket => self
                .with(instruction(LOAD, FIRST_ARGUMENT_LOW, 0, 0))
                .with(instruction(JUMP_EQUAL, VSOCK, 0, 1))
                .with(instruction(RETURN, RETURN_EPERM, 0, 0))
                .with(instruction(RETURN, RETURN_ALLOW, 0, 0)),
            Answer::CheckPersonality => {
                let mut filter = self.with(instruction(LOAD, FIRST_ARGUMENT_LOW, 0, 0));
                let mut i = 0;
                while i < PERSONALITIES.len() {
                    let to_allow = (PERSONALITIES.len() - i) as u8;
                    filter = filter.with(instruction(JUMP_EQUAL, PERSONALITIES[i], to_allow, 0));
                    i += 1;
                }
                filter
                    .with(instruction(RETURN, RETURN_EPERM, 0, 0))
                    .with(instruction(RETURN, RETURN_ALLOW, 0, 0))
            }
        }
    }
}

pub(crate) const fn instruction(
    code: u16,
    operand: u32,
    jump_true: u8,
    jump_false: u8,
) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        operand,
    }
}

/// One answer for each known number, and a last one for all beyond.
type Answers = [Answer; LAST_KNOWN as usize + 2];

const fn answers(capabilities: u64) -> Answers {
    let mut answers = [Answer::Refuse; LAST_KNOWN as usize + 2];
    answers[LAST_KNOWN as usize + 1] = Answer::Unknown;
    // Numbers between the old table and the one that all architectures share stay unused, and unknown.
    let mut number = 336;
    while number < 424 {
        answers[number] = Answer::Unknown;
        number += 1;
    }
    allow(&mut answers, ALLOWED);
    answers[libc::SYS_clone as usize] = Answer::CheckClone;
    answers[libc::SYS_clone3 as usize] = Answer::Unknown;
    answers[libc::SYS_personality as usize] = Answer::CheckPersonality;
    answers[libc::SYS_socket as usize] = Answer::CheckSocket;
    let mut i = 0;
    while i < ALLOWED_BY_CAPABILITY.len() {
        let (capability, calls) = ALLOWED_BY_CAPABILITY[i];
        if capabilities & (1 << capability) != 0 {
            allow(&mut answers, calls);
        }
        i += 1;
    }
    answers
}

const fn allow(answers: &mut Answers, calls: &[libc::c_long]) {
    let mut i = 0;
    while i < calls.len() {
        answers[calls[i] as usize] = Answer::Allow;
        i += 1;
    }
}

const _: () = assert!(SYS_ADMIN == 21, "the table names the capability by number");

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program returns for a call: a small interpreter of the four operations that it uses.
    fn run(filter: &Filter, architecture: u32, number: u32, first_argument: u32) -> u32 {
        let program = filter.instructions();
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
                        FIRST_ARGUMENT_LOW => first_argument,
                        other => panic!("load from {other}"),
                    }
                }
                JUMP_EQUAL => at += jump(accumulator == i.operand),
                JUMP_AT_LEAST => at += jump(accumulator >= i.operand),
                JUMP_ANY_BIT => at += jump(accumulator & i.operand != 0),
                RETURN => return i.operand,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn call(number: libc::c_long, argument: u32) -> u32 {
        run(&DEFAULT_FILTER, AUDIT_ARCH_X86_64, number as u32, argument)
    }

    #[test]
    fn the_program_agrees_with_the_table_for_every_number_and_capability() {
        let sets = (0..=41)
            .map(|bit| 1_u64 << bit)
            .chain([0, u64::MAX, DEFAULT_CAPABILITIES]);
        for capabilities in sets {
            let (filter, answers) = (Filter::compile(capabilities), answers(capabilities));
            for number in 0..=LAST_KNOWN + 50 {
                let expected = match answers[number.min(LAST_KNOWN + 1) as usize] {
                    Answer::Refuse => RETURN_EPERM,
                    Answer::Unknown => RETURN_ENOSYS,
                    _ => RETURN_ALLOW,
                };
                assert_eq!(
                    run(&filter, AUDIT_ARCH_X86_64, number, 0),
                    expected,
                    "call {number}, set {capabilities:#x}"
                );
            }
        }
    }

    #[test]
    fn every_set_of_capabilities_that_matters_compiles() {
        for set in 0_u32..1 << ALLOWED_BY_CAPABILITY.len() {
            let chosen = ALLOWED_BY_CAPABILITY
                .iter()
                .enumerate()
                .filter(|(i, _)| set >> i & 1 == 1);
            let filter = Filter::compile(
                chosen.fold(0, |bits, (_, (capability, _))| bits | 1 << capability),
            );
            assert!(filter.length < CAPACITY);
        }
    }

    #[test]
    fn namespaces_hypervisor_sockets_and_odd_personalities_are_refused() {
        assert_eq!(
            call(libc::SYS_clone, libc::CLONE_NEWUSER as u32),
            RETURN_EPERM
        );
        assert_eq!(
            call(
                libc::SYS_clone,
                (libc::CLONE_VM | libc::CLONE_THREAD) as u32
            ),
            RETURN_ALLOW
        );
        assert_eq!(call(libc::SYS_clone3, 0), RETURN_ENOSYS);
        assert_eq!(call(libc::SYS_unshare, 0), RETURN_EPERM);
        assert_eq!(call(libc::SYS_socket, libc::AF_VSOCK as u32), RETURN_EPERM);
        assert_eq!(call(libc::SYS_socket, libc::AF_INET as u32), RETURN_ALLOW);
        assert_eq!(call(libc::SYS_personality, 0x0040_0000), RETURN_EPERM);
        assert_eq!(call(libc::SYS_personality, 0xffff_ffff), RETURN_ALLOW);
        assert_eq!(call(libc::SYS_io_uring_setup, 0), RETURN_EPERM);
        assert_eq!(call(libc::SYS_keyctl, 0), RETURN_EPERM);
    }

    #[test]
    fn foreign_calling_conventions_find_no_calls() {
        assert_eq!(run(&DEFAULT_FILTER, 0x4000_0003, 11, 0), RETURN_ENOSYS);
        assert_eq!(
            run(&DEFAULT_FILTER, AUDIT_ARCH_X86_64, 0x4000_0000, 0),
            RETURN_ENOSYS
        );
    }
}
