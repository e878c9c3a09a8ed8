//! Which device nodes a container may use: the specification's list as a program of eBPF for its cgroup.
//!
//! Without it a container that may make device nodes, as by default it may, could open the machine's disks.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use orlop_sys::cgroup::BpfInstruction;

// Operations of eBPF (`include/uapi/linux/bpf.h`, `include/uapi/linux/bpf_common.h`).
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_VALUE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND_VALUE: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95;

// What each register holds while the rules are looked through.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// `BPF_DEVCG_DEV_*` and `BPF_DEVCG_ACC_*`.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

fn operation(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> BpfInstruction {
    BpfInstruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
}

/// The program for `rules`; a later rule beats an earlier one, and what no rule names is refused.
pub(crate) fn compile(rules: &[LinuxDeviceCgroup]) -> Vec<BpfInstruction> {
    // `struct bpf_cgroup_dev_ctx`: access << 16 | type, major, minor.
    let mut program = vec![
        operation(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        operation(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        operation(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        operation(AND_VALUE, TYPE, 0, 0, 0xffff),
        operation(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        operation(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let code = compile_rule(rule);
        let matches_everything = code.len() == 2;
        program.extend(code);
        // The verifier refuses code that nothing reaches.
        if matches_everything {
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn answer(allow: bool) -> [BpfInstruction; 2] {
    [
        operation(MOVE_VALUE, RESULT, 0, 0, i32::from(allow)),
        operation(EXIT, 0, 0, 0, 0),
    ]
}

fn compile_rule(rule: &LinuxDeviceCgroup) -> Vec<BpfInstruction> {
    let mut tests: Vec<Vec<BpfInstruction>> = Vec::new();
    // The jump's distance is filled in when the length is known.
    let unless = |register, value| operation(JUMP_NOT_EQUAL, register, 0, 0, value);
    match rule.typ() {
        Some(LinuxDeviceType::B) => tests.push(vec![unless(TYPE, TYPE_BLOCK)]),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => {
            tests.push(vec![unless(TYPE, TYPE_CHARACTER)])
        }
        Some(LinuxDeviceType::A | LinuxDeviceType::P) | None => {}
    }
    let letters = rule.access().as_deref().unwrap_or("rwm");
    let letter = |c: char, bit: i32| if letters.contains(c) { bit } else { 0 };
    let access = letter('m', ACCESS_MKNOD) | letter('r', ACCESS_READ) | letter('w', ACCESS_WRITE);
    if access != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        // The rule speaks of accesses that lie wholly within its letters.
        tests.push(vec![
            operation(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
            operation(AND_VALUE, SCRATCH, 0, 0, !access & 0xffff),
            unless(SCRATCH, 0),
        ]);
    }
    for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
        if let Some(number) = number
            .and_then(|n| i32::try_from(n).ok())
            .filter(|n| *n >= 0)
        {
            tests.push(vec![unless(register, number)]);
        }
    }
    let mut code: Vec<BpfInstruction> = tests.concat();
    code.extend(answer(rule.allow()));
    let end = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        if instruction.code == JUMP_NOT_EQUAL {
            instruction.offset = i16::try_from(end - at - 1).unwrap_or(0);
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    /// Runs the program for one access, as the kernel would.
    fn decide(program: &[BpfInstruction], access: i32, kind: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i32; 7];
        let mut at = 0;
        loop {
            let i = program[at];
            at += 1;
            let (to, from) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            match i.code {
                LOAD_WORD => registers[to] = context[i.offset as usize / 4],
                MOVE_REGISTER => registers[to] = registers[from],
                MOVE_VALUE => registers[to] = i.immediate,
                AND_VALUE => registers[to] &= i.immediate,
                SHIFT_RIGHT => registers[to] >>= i.immediate,
                JUMP_NOT_EQUAL if registers[to] != i.immediate => at += i.offset as usize,
                JUMP_NOT_EQUAL => {}
                EXIT => return registers[0] != 0,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn rule(
        allow: bool,
        kind: LinuxDeviceType,
        number: Option<(i64, i64)>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut builder = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(kind)
            .access(access.to_owned());
        if let Some((major, minor)) = number {
            builder = builder.major(major).minor(minor);
        }
        builder.build().unwrap()
    }

    #[test]
    fn the_last_rule_that_matches_decides_and_no_rule_refuses() {
        use LinuxDeviceType::{A, C};
        let program = compile(&[
            rule(false, A, None, "rwm"),
            rule(true, C, None, "m"),
            rule(true, C, Some((1, 3)), "rw"),
        ]);
        let (read_write, mknod) = (ACCESS_READ | ACCESS_WRITE, ACCESS_MKNOD);
        assert!(decide(&program, read_write, TYPE_CHARACTER, 1, 3));
        assert!(decide(&program, mknod, TYPE_CHARACTER, 8, 0));
        assert!(!decide(&program, ACCESS_READ, TYPE_BLOCK, 8, 0));
        assert!(!decide(&program, ACCESS_READ, TYPE_CHARACTER, 1, 1));
        assert!(!decide(&program, mknod, TYPE_BLOCK, 8, 0));
        assert!(!decide(&compile(&[]), ACCESS_READ, TYPE_CHARACTER, 1, 3));
    }
}
