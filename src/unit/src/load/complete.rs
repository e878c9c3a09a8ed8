//! From the assignments of all files to a unit: defaults and checks that need the whole.

use std::sync::Arc;

use super::defaults::Edges;
use super::{Fragment, kinds};
use crate::directive::{Draft, Written};
use crate::name::{UnitName, UnitType};
use crate::problem::{Position, Problems, Severity};
use crate::service::{NotifyAccess, Restart, Service, ServiceType};
use crate::unit::{Kind, MachineAction, Unit};
use crate::value::Span;

/// Checks the whole and fills in what depends on several directives.
pub(super) fn finish(
    mut draft: Draft,
    name: &UnitName,
    fragment: Option<&Fragment>,
    drop_ins: Vec<String>,
    aliases: Vec<UnitName>,
    path: &Arc<str>,
    problems: &mut Problems,
) -> Option<Unit> {
    let kind = match kind(&mut draft, name) {
        Ok(kind) => kind,
        Err(message) => {
            // After another error this one may only follow from it.
            if !problems.failed() {
                problems.push(path, Position::default(), Severity::Error, message);
            }
            return None;
        }
    };
    let mut edges = Edges::new(
        name,
        &mut draft.dependencies,
        &mut draft.requires_mounts_for,
    );
    edges.implicit(&kind);
    if !draft.no_default_dependencies {
        edges.default(&kind);
    }
    Some(Unit {
        name: name.clone(),
        aliases,
        description: if draft.description.is_empty() {
            name.as_str().to_owned()
        } else {
            draft.description
        },
        documentation: draft.documentation,
        fragment: fragment.map(|f| f.path.clone()),
        drop_ins,
        dependencies: draft.dependencies,
        default_dependencies: !draft.no_default_dependencies,
        requires_mounts_for: draft.requires_mounts_for,
        conditions: draft.conditions,
        asserts: draft.asserts,
        install: draft.install,
        start_limit: draft.start_limit,
        failure_action: draft.failure_action,
        success_action: draft.success_action,
        job_timeout: draft.job_timeout.and_then(Span::timeout),
        stop_when_unneeded: draft.stop_when_unneeded,
        refuse_manual_start: draft.refuse_manual_start,
        refuse_manual_stop: draft.refuse_manual_stop,
        allow_isolate: draft.allow_isolate,
        ignore_on_isolate: draft.ignore_on_isolate,
        kind,
    })
}

/// Checks what is particular to the unit's type.
fn kind(draft: &mut Draft, name: &UnitName) -> Result<Kind, String> {
    Ok(match name.kind() {
        UnitType::Service | UnitType::Container => {
            let mut service = std::mem::take(&mut draft.service);
            let has_success_action = draft.success_action != MachineAction::None;
            complete(&mut service, &draft.written, has_success_action)?;
            Kind::Service(Arc::new(service))
        }
        UnitType::Target => Kind::Target,
        UnitType::Timer => Kind::Timer(Box::new(kinds::timer(draft, name)?)),
        UnitType::Socket => Kind::Socket(Box::new(kinds::socket(draft, name)?)),
        UnitType::Mount => Kind::Mount(Box::new(kinds::mount(draft, name)?)),
        UnitType::Path => Kind::Path(Box::new(kinds::path(draft, name)?)),
        UnitType::Slice => {
            kinds::check_slice(name)?;
            Kind::Slice(Box::new(draft.service.resources))
        }
        kind @ (UnitType::Automount | UnitType::Swap | UnitType::Device | UnitType::Scope) => {
            return Err(format!("{} units are not supported", kind.suffix()));
        }
    })
}

/// Fills in a service's defaults and checks it (`systemd.service(5)`).
fn complete(
    service: &mut Service,
    written: &Written,
    has_success_action: bool,
) -> Result<(), String> {
    let without_start = service.exec_start.is_empty();
    if written.bus_name && written.service_type.is_none() {
        return Err(
            "BusName= without Type= means Type=dbus, and there is no message bus".to_owned(),
        );
    }
    service.service_type = match written.service_type {
        Some(service_type) => service_type,
        None if without_start => ServiceType::Oneshot,
        None => ServiceType::Simple,
    };
    let oneshot = service.service_type == ServiceType::Oneshot;
    let stops = service.remain_after_exit && !service.exec_stop.is_empty();
    if without_start && !(oneshot && (stops || has_success_action)) {
        return Err(
            "no ExecStart=; that is only possible with RemainAfterExit=yes and ExecStop="
                .to_owned(),
        );
    }
    if !oneshot && service.exec_start.len() > 1 {
        return Err("more than one ExecStart=; that is only possible with Type=oneshot".to_owned());
    }
    if oneshot && matches!(service.restart, Restart::Always | Restart::OnSuccess) {
        return Err("Restart=always and on-success are not possible with Type=oneshot".to_owned());
    }
    service.timeout_start = match written.timeout_start {
        Some(span) => span.timeout(),
        None if oneshot => None,
        None => service.timeout_start,
    };
    if let Some(span) = written.timeout_stop {
        service.timeout_stop = span.timeout();
    }
    service.timeout_abort = match written.timeout_abort {
        Some(span) => span.timeout(),
        None => service.timeout_stop,
    };
    service.restart_max_delay = written.restart_max_delay.and_then(Span::timeout);
    service.confinement.complete();
    service.runtime_max = written.runtime_max.and_then(Span::timeout);
    service.watchdog = written.watchdog.and_then(Span::timeout);
    let notifies = matches!(
        service.service_type,
        ServiceType::Notify | ServiceType::NotifyReload
    );
    service.notify_access = match written.notify_access {
        None | Some(NotifyAccess::None) if notifies || service.watchdog.is_some() => {
            NotifyAccess::Main
        }
        access => access.unwrap_or_default(),
    };
    service.kill_mode = written.kill_mode.unwrap_or_default();
    service.kill_signal = written.kill_signal.unwrap_or(service.kill_signal);
    service.restart_kill_signal = written.restart_kill_signal.unwrap_or(service.kill_signal);
    if written.permissions_start_only {
        let others = [
            &mut service.exec_condition,
            &mut service.exec_start_pre,
            &mut service.exec_start_post,
            &mut service.exec_reload,
            &mut service.exec_stop,
            &mut service.exec_stop_post,
        ];
        for command in others.into_iter().flatten() {
            command.flags.full_privileges = true;
        }
    }
    service.delegate = written.delegate.unwrap_or(service.delegate);
    service.guess_main_pid = written.guess_main_pid.unwrap_or(service.guess_main_pid);
    Ok(())
}
