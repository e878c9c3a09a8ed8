//! `Publish=`: what is kept below `/services/` while a unit runs, so that nothing beside it has to.

use std::collections::BTreeMap;

use orlop_schedule::{MachineId, Publish, UnitFile, UnitName};
use serde_json::json;

use crate::keys::SERVICES;

/// The keys and values of one unit that is up on this machine.
#[must_use]
pub fn published(
    unit: &UnitName,
    file: &UnitFile,
    machine: &MachineId,
    address: &str,
) -> BTreeMap<String, String> {
    let constraints = &file.constraints;
    // A global unit has an instance on every machine.
    let instance = if constraints.global {
        format!("{}.{}", unit.stem(), machine.short())
    } else {
        unit.stem().to_owned()
    };
    let value = |publish: &Publish| match &constraints.publish_value {
        None => json!({
            "address": address,
            "port": publish.port,
            "unit": unit.as_str(),
            "machine": machine.as_str(),
        })
        .to_string(),
        Some(template) => template
            .replace("{address}", address)
            .replace("{port}", &publish.port.to_string())
            .replace("{machine}", machine.as_str())
            .replace("{unit}", unit.as_str())
            .replace("{service}", &publish.service),
    };
    let mut services: BTreeMap<String, String> = BTreeMap::new();
    for publish in &constraints.publish {
        let key = format!("{SERVICES}{}/{instance}", publish.service);
        // Of one service's ports the first keeps the plain name.
        let key = if services.contains_key(&key) {
            format!("{key}:{}", publish.port)
        } else {
            key
        };
        services.insert(key, value(publish));
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published_by(section: &str) -> BTreeMap<String, String> {
        let unit = UnitName::parse("web@1.service").unwrap();
        let text = format!("[Service]\nExecStart=/bin/a\n[X-Fleet]\n{section}\n");
        let file = UnitFile::parse(&unit, &text).unwrap();
        published(
            &unit,
            &file,
            &MachineId::new("0123456789abcdef"),
            "10.0.0.7",
        )
    }

    #[test]
    fn a_running_unit_is_found_by_its_service() {
        let services = published_by("Publish=www:80\nPublish=www:443\nPublish=api:81");
        let keys: Vec<_> = services.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "/services/api/web@1",
                "/services/www/web@1",
                "/services/www/web@1:443"
            ]
        );
        let value: serde_json::Value =
            serde_json::from_str(&services["/services/www/web@1"]).unwrap();
        assert_eq!(
            (&value["address"], &value["port"]),
            (&json!("10.0.0.7"), &json!(80))
        );
    }

    #[test]
    fn the_value_can_be_set_and_global_units_do_not_overwrite_each_other() {
        let services =
            published_by("Publish=www:80\nGlobal=yes\nPublishValue=http://{address}:{port}/");
        assert_eq!(
            services,
            BTreeMap::from([(
                "/services/www/web@1.01234567".to_owned(),
                "http://10.0.0.7:80/".to_owned()
            )])
        );
    }
}
