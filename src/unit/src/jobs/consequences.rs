//! What follows from a unit's change of state beside its own job: `OnFailure=`, `OnSuccess=`, `Upholds=`,
//! `StopWhenUnneeded=` (`systemd.unit(5)`).

use std::fmt;

use super::{JobKind, Jobs, Request};
use crate::graph::{ActiveState, Edge, Graph, UnitId};

/// Why a unit is to be started or stopped that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// `OnFailure=` of a unit that failed.
    Failure,
    /// `OnSuccess=` of a unit that ended well.
    Success,
    /// `Upholds=` of a unit that is up. To be requested at a bounded rate: what always fails would be started for ever.
    Upheld,
    /// `StopWhenUnneeded=` of a unit that nobody needs any more.
    Unneeded,
}

/// A request that the supervisor should make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Consequence {
    /// The unit.
    pub unit: UnitId,
    /// Start or stop.
    pub request: Request,
    /// Why.
    pub why: Why,
    /// The unit that changed.
    pub because: UnitId,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failure => "OnFailure=",
            Self::Success => "OnSuccess=",
            Self::Upheld => "Upholds=",
            Self::Unneeded => "StopWhenUnneeded=",
        })
    }
}

impl Jobs {
    /// What follows from a unit's change from `before` to the state that the graph has now.
    ///
    /// To be called after [`Jobs::finished`] or [`Jobs::gone_by_itself`] for the same change, and not while the unit
    /// waits for an automatic restart.
    #[must_use]
    pub fn consequences(
        &self,
        graph: &Graph,
        unit: UnitId,
        before: ActiveState,
    ) -> Vec<Consequence> {
        let now = graph.state(unit);
        let mut out = Vec::new();
        if now == before {
            return out;
        }
        let mut add = |unit: UnitId, request: Request, why: Why, because: UnitId| {
            let consequence = Consequence {
                unit,
                request,
                why,
                because,
            };
            if !out.contains(&consequence) {
                out.push(consequence);
            }
        };
        let followers = match now {
            ActiveState::Failed => Some((Edge::OnFailure, Why::Failure)),
            ActiveState::Inactive if !before.is_down() => Some((Edge::OnSuccess, Why::Success)),
            _ => None,
        };
        if let Some((edge, why)) = followers {
            for other in graph.related(unit, edge) {
                add(other, Request::Start, why, unit);
            }
        }
        if now.is_down() && !before.is_down() {
            let idle = self.job_of(unit).is_none();
            let mut upholders = graph.related(unit, Edge::UpheldBy);
            if idle && upholders.any(|other| self.stays_up(graph, other)) {
                add(unit, Request::Start, Why::Upheld, unit);
            }
            for (edge, other) in graph.edges(unit) {
                if is_need(*edge) && self.is_unneeded(graph, *other) {
                    add(*other, Request::Stop, Why::Unneeded, unit);
                }
            }
        }
        if now.is_up() && !before.is_up() {
            for other in graph.related(unit, Edge::Upholds) {
                if graph.state(other).is_down() && self.job_of(other).is_none() {
                    add(other, Request::Start, Why::Upheld, unit);
                }
            }
            if self.is_unneeded(graph, unit) {
                add(unit, Request::Stop, Why::Unneeded, unit);
            }
        }
        out
    }

    /// Up, and no job takes it down.
    fn stays_up(&self, graph: &Graph, unit: UnitId) -> bool {
        let going = self
            .job_of(unit)
            .is_some_and(|job| job.kind == JobKind::Stop);
        graph.state(unit).is_up() && !going
    }

    /// Whether a unit with `StopWhenUnneeded=` is up, has no job, and nobody that wants it is up or will be.
    fn is_unneeded(&self, graph: &Graph, unit: UnitId) -> bool {
        let asks = graph.unit(unit).is_some_and(|u| u.stop_when_unneeded);
        if !asks || !graph.state(unit).is_up() || self.job_of(unit).is_some() {
            return false;
        }
        let needed = |(edge, other): &(Edge, UnitId)| {
            let needs = matches!(
                edge,
                Edge::WantedBy
                    | Edge::RequiredBy
                    | Edge::RequisiteOf
                    | Edge::BoundBy
                    | Edge::UpheldBy
            );
            let comes = || {
                self.job_of(*other)
                    .is_some_and(|job| matches!(job.kind, JobKind::Start | JobKind::Restart))
            };
            needs && (!graph.state(*other).is_down() || comes())
        };
        !graph.edges(unit).iter().any(needed)
    }
}

/// Edges along which a unit keeps others from being unneeded.
fn is_need(edge: Edge) -> bool {
    matches!(
        edge,
        Edge::Wants | Edge::Requires | Edge::Requisite | Edge::BindsTo | Edge::Upholds
    )
}
