//! Machines in the order of their load, so that the best one is found without looking at all.

use std::collections::BTreeSet;

use super::Room;

/// Load, the place of the machine's id among all, and the machine.
type Rank = (u32, u32, usize);

/// All machines, the least loaded first.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    sorted: BTreeSet<Rank>,
    /// Where each machine stands there.
    stands: Vec<Rank>,
}

impl Ranks {
    pub(super) fn new(rooms: &[Room]) -> Self {
        let ranks = rooms.iter().enumerate();
        let stands: Vec<Rank> = ranks
            .map(|(machine, room)| (room.load, room.order, machine))
            .collect();
        Self {
            sorted: stands.iter().copied().collect(),
            stands,
        }
    }

    /// A machine's load is another now.
    pub(super) fn update(&mut self, machine: usize, room: &Room) {
        if let Some(stands) = self.stands.get_mut(machine) {
            let now = (room.load, room.order, machine);
            if *stands != now {
                self.sorted.remove(stands);
                self.sorted.insert(now);
                *stands = now;
            }
        }
    }

    /// Machines, the least loaded first, of equal ones that whose id is first.
    pub(super) fn least_loaded(&self) -> impl Iterator<Item = usize> {
        self.sorted.iter().map(|(_, _, machine)| *machine)
    }

    /// Machines and their loads, the most loaded first.
    pub(super) fn most_loaded(&self) -> impl Iterator<Item = (u32, usize)> {
        let sorted = self.sorted.iter().rev();
        sorted.map(|(load, _, machine)| (*load, *machine))
    }
}
