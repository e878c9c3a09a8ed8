//! A made-up cluster of any size, for the simulation and for measuring.

#![allow(unreachable_pub, reason = "the module is compiled into two programs")]

use std::sync::Arc;
use std::time::Duration;

use orlop_schedule::{Capacity, Job, Machine, Presence, Target, UnitFile, UnitName};

/// Numbers that follow from a seed (xorshift64*; Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }
}

/// The machine of a number: 32 or 64 GiB, one of five zones, a tenth with an SSD.
pub fn machine(number: u64) -> Machine {
    let mut machine = Machine::new(&format!("{number:08x}{:024x}", number * 7919));
    machine.capacity = Capacity {
        cpu_milli: 16_000,
        memory_bytes: (32 << 30) << (number % 2),
        disk_bytes: 1 << 40,
    };
    machine
        .metadata
        .insert("zone".into(), format!("z{}", number % 5));
    if number.is_multiple_of(10) {
        machine.metadata.insert("disk".into(), "ssd".into());
    }
    machine
}

pub fn silent(number: u64, since: Duration) -> Machine {
    Machine {
        presence: Presence::SilentSince(since),
        ..machine(number)
    }
}

/// The unit of a number: a twentieth each with a port, a zone, a conflict with its family or a peer; the rest plain.
pub fn unit(number: u64) -> Job {
    let memory = 256 << (number % 4);
    let family = number / 20;
    let (name, fleet) = match number % 20 {
        0 => (
            format!("front-{number}.service"),
            format!("Ports={}", 8000 + family % 50),
        ),
        1 => (
            format!("zoned-{number}.service"),
            format!("MachineMetadata=zone=z{}", family % 5),
        ),
        2 => (
            format!("alone@{number}.service"),
            "Conflicts=alone@*.service".to_owned(),
        ),
        3 => (
            format!("side-{number}.service"),
            format!("MachineOf=front-{}.service", number - 3),
        ),
        4 => (
            format!("fast-{number}.service"),
            "MachineMetadata=disk=ssd\nStrategy=pack".to_owned(),
        ),
        n => (format!("web{family}@{n}.service"), "Cpus=0.25".to_owned()),
    };
    let name = UnitName::parse(&name).expect("a unit's name");
    let text = format!("[Service]\nExecStart=/bin/true\n[X-Fleet]\nMemory={memory}M\n{fleet}\n");
    Job {
        file: Arc::new(UnitFile::parse(&name, &text).expect("a unit")),
        name,
        target: Target::Launched,
    }
}
