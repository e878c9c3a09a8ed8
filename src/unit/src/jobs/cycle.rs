//! Ordering cycles.

use crate::graph::{Edge, Graph, UnitId};

/// A cycle along `After` through units that belong; each is ordered after the next.
pub(super) fn find_cycle(
    graph: &Graph,
    roots: impl Iterator<Item = UnitId>,
    belongs: impl Fn(UnitId) -> bool,
) -> Option<Vec<UnitId>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Colour {
        New,
        OnPath,
        Clear,
    }
    let mut colours = vec![Colour::New; graph.len()];
    for root in roots {
        if !belongs(root) || colours.get(root.index()) != Some(&Colour::New) {
            continue;
        }
        let mut path: Vec<(UnitId, std::slice::Iter<'_, (Edge, UnitId)>)> =
            vec![(root, graph.edges(root).iter())];
        if let Some(colour) = colours.get_mut(root.index()) {
            *colour = Colour::OnPath;
        }
        while let Some((unit, edges)) = path.last_mut() {
            let next = edges
                .find(|(edge, other)| *edge == Edge::After && belongs(*other))
                .map(|(_, other)| *other);
            let Some(next) = next else {
                if let Some(colour) = colours.get_mut(unit.index()) {
                    *colour = Colour::Clear;
                }
                path.pop();
                continue;
            };
            match colours.get(next.index()) {
                Some(Colour::New) => {
                    if let Some(colour) = colours.get_mut(next.index()) {
                        *colour = Colour::OnPath;
                    }
                    path.push((next, graph.edges(next).iter()));
                }
                Some(Colour::OnPath) => {
                    return Some(
                        path.iter()
                            .map(|(unit, _)| *unit)
                            .skip_while(|unit| *unit != next)
                            .collect(),
                    );
                }
                _ => {}
            }
        }
    }
    None
}
