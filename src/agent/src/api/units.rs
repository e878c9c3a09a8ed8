//! Units and their states.

use axum::http::StatusCode;
use orlop_schedule::{MachineId, Refusal as Refused, Target, UnitFile, UnitName, UnitOption};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Refusal;
use crate::client::Write;
use crate::keys::Key;
use crate::records::{OptionRecord, UnitRecord};
use crate::registry::Registry;

pub(super) fn parse_name(name: &str) -> Result<UnitName, Refusal> {
    UnitName::parse(name).map_err(|err| Refusal::bad(err.to_string()))
}

pub(super) fn list(registry: &Registry) -> Vec<Value> {
    registry
        .units
        .keys()
        .filter_map(|unit| one(registry, unit))
        .collect()
}

pub(super) fn one(registry: &Registry, unit: &UnitName) -> Option<Value> {
    let entry = registry.units.get(unit)?;
    let global = entry.file.as_ref().is_ok_and(|f| f.constraints.global);
    let placed = registry.placed(unit).next();
    let current = placed.and_then(|(machine, fence)| {
        let state = registry.state(unit, machine)?;
        (state.fence == fence).then_some(if state.launched {
            Target::Launched
        } else {
            Target::Loaded
        })
    });
    let mut body = json!({
        "name": unit.as_str(),
        "options": entry.record.options,
        "desiredState": registry.target(unit).as_str(),
        "currentState": current.unwrap_or_default().as_str(),
        "machineID": placed.filter(|_| !global).map_or("", |(id, _)| id.as_str()),
    });
    if let (Err(err), Some(map)) = (&entry.file, body.as_object_mut()) {
        map.insert("error".to_owned(), err.as_str().into());
    }
    Some(body)
}

/// Reports, of one machine or one unit where that is asked for.
pub(super) fn states(registry: &Registry, machine: Option<&str>, unit: Option<&str>) -> Vec<Value> {
    let mut all = Vec::new();
    for (name, machines) in &registry.states {
        if unit.is_some_and(|unit| unit != name.as_str()) {
            continue;
        }
        for (id, state) in machines {
            if machine.is_some_and(|machine| machine != id.as_str()) {
                continue;
            }
            all.push(json!({
                "name": name.as_str(),
                "hash": state.hash,
                "machineID": id.as_str(),
                "systemdLoadState": state.load,
                "systemdActiveState": state.active,
                "systemdSubState": state.sub,
                "launched": state.launched,
                "fence": state.fence,
                "error": state.error,
                "log": state.log,
            }));
        }
    }
    all
}

/// What a client wants of a unit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    name: String,
    #[serde(default)]
    desired_state: String,
    #[serde(default)]
    options: Vec<OptionRecord>,
}

/// The same, checked.
#[derive(Debug)]
pub(super) struct Put {
    target: Target,
    record: UnitRecord,
    /// Of the options that came, when some did.
    file: Option<UnitFile>,
}

/// What to write.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) code: StatusCode,
    pub(super) writes: Vec<Write>,
}

impl Put {
    pub(super) fn parse(unit: &UnitName, body: &[u8]) -> Result<Self, Refusal> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|err| Refusal::bad(format!("the body cannot be read: {err}")))?;
        if !body.name.is_empty() && UnitName::parse(&body.name).as_ref() != Ok(unit) {
            return Err(Refusal::bad(
                "name in URL differs from unit name in request body",
            ));
        }
        let target = Target::from_word(&body.desired_state).ok_or_else(|| {
            Refusal::bad(format!(
                "invalid desired state {:?}: inactive, loaded or launched",
                body.desired_state
            ))
        })?;
        if unit.is_template() && target != Target::Inactive {
            return Err(Refusal::bad(format!(
                "cannot schedule template unit {unit}: name an instance"
            )));
        }
        let options: Vec<UnitOption> = body.options.iter().cloned().map(Into::into).collect();
        let file = if options.is_empty() {
            None
        } else {
            let file = UnitFile::from_options(unit, options);
            Some(file.map_err(|err| Refusal::bad(format!("{unit}: {err}")))?)
        };
        Ok(Self {
            target,
            record: UnitRecord {
                options: body.options,
            },
            file,
        })
    }

    pub(super) fn plan(&self, registry: &Registry, unit: &UnitName) -> Result<Plan, Refusal> {
        let known = registry.units.get(unit);
        let target = Write::Put(
            Key::Target(unit.clone()).to_string(),
            self.target.as_str().to_owned(),
            0,
        );
        let same = known.is_some_and(|entry| {
            let hash = entry.file.as_ref().ok().map(|file| &file.hash);
            self.file
                .as_ref()
                .is_none_or(|file| Some(&file.hash) == hash)
        });
        if same {
            return Ok(Plan {
                code: StatusCode::NO_CONTENT,
                writes: vec![target],
            });
        }
        if self.file.is_none() {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "unit does not exist and options field empty",
            ));
        }
        let record = serde_json::to_string(&self.record)
            .map_err(|err| Refusal::bad(format!("the options cannot be written: {err}")))?;
        Ok(Plan {
            code: StatusCode::CREATED,
            writes: vec![
                Write::Put(Key::Unit(unit.clone()).to_string(), record, 0),
                target,
            ],
        })
    }
}

pub(super) fn destroy(unit: &UnitName) -> [Write; 2] {
    [
        Write::Delete(Key::Unit(unit.clone()).to_string()),
        Write::Delete(Key::Target(unit.clone()).to_string()),
    ]
}

/// Why a unit is where it is: for every machine the reason that speaks against it.
pub(super) fn why(registry: &Registry, unit: &UnitName) -> Value {
    let Some(entry) = registry.units.get(unit) else {
        return json!({ "name": unit.as_str(), "exists": false });
    };
    let mut scheduler = registry.scheduler();
    scheduler.count();
    let why = scheduler.why(unit, registry.now());
    let ip = |id: &MachineId| registry.machines.get(id).map(|m| m.ip.clone());
    let waits_for = |id: &MachineId, fence: u64| {
        // Where the unit still runs for an earlier placement.
        let states = registry.states.get(unit).into_iter().flatten();
        let mut states = states.filter(|(other, s)| *other != id && s.may_run() && s.fence < fence);
        states.next().map(|(other, _)| other.as_str().to_owned())
    };
    let placed: Vec<Value> = why
        .placed
        .iter()
        .map(|(id, fence)| {
            let state = registry.state(unit, id).filter(|s| s.fence == *fence);
            json!({
                "machineID": id.as_str(),
                "primaryIP": ip(id),
                "fence": fence,
                "silentSeconds": registry.silence(id).map(|span| span.as_secs()),
                "waitsFor": waits_for(id, *fence),
                "launched": state.is_some_and(|s| s.launched),
                "active": state.map(|s| s.active.as_str()),
                "sub": state.map(|s| s.sub.as_str()),
                "error": state.and_then(|s| s.error.as_deref()),
            })
        })
        .collect();
    let machines: Vec<Value> = why
        .machines
        .iter()
        .map(|(id, refusal)| {
            json!({
                "machineID": id.as_str(),
                "primaryIP": ip(id),
                "reason": refusal.as_ref().map(ToString::to_string),
                // Whether the reason may go by itself, without anybody doing anything about it.
                "passing": matches!(refusal, Some(Refused::Silent { .. } | Refused::Peer { .. })),
            })
        })
        .collect();
    json!({
        "name": unit.as_str(),
        "exists": true,
        "error": entry.file.as_ref().err(),
        "desiredState": registry.target(unit).as_str(),
        "template": why.template,
        "global": entry.file.as_ref().is_ok_and(|f| f.constraints.global),
        "leader": registry.leader,
        "placed": placed,
        "machines": machines,
    })
}
