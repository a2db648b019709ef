//! Does a live object still hold what was ordered? Pure.
//!
//! The API server adds defaults and others add fields of their own, so the question is not whether the two are equal but
//! whether every ordered field is there with its value. A field that is *no longer* ordered can't be seen that way; for
//! it every object carries a hash of its last order.

use carillon_crds::parse_quantity;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Annotation with the hash of the order that an object was last written for.
pub const ORDER_HASH: &str = "carillon.chat/order-hash";

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing: no write is needed.
    None,
    /// The order is another one than last time.
    OtherOrder,
    /// The order is the same, but the object is not as it was ordered; the path of the first field that isn't.
    Drift(String),
}

/// The object as it is written: with a hash of itself among its annotations.
pub fn with_hash<K: Serialize>(desired: &K) -> Value {
    let mut value = serde_json::to_value(desired)
        .expect("API objects have string keys only and always serialize");
    let hash = hex::encode(&Sha256::digest(value.to_string().as_bytes())[..16]);
    let annotations = value
        .as_object_mut()
        .expect("an API object is a map")
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()))
        .as_object_mut()
        .expect("metadata is a map")
        .entry("annotations")
        .or_insert_with(|| Value::Object(Map::new()));
    annotations[ORDER_HASH] = Value::String(hash);
    value
}

/// Compares an order made by [`with_hash`] with what there is.
pub fn difference(ordered: &Value, live: &Value) -> Difference {
    let hash = |object: &Value| {
        object
            .pointer("/metadata/annotations")
            .and_then(|map| map.get(ORDER_HASH))
            .cloned()
    };
    if hash(ordered) != hash(live) {
        return Difference::OtherOrder;
    }
    match first_missing(ordered, live, "") {
        Some(path) => Difference::Drift(path),
        None => Difference::None,
    }
}

/// Path of the first field of `ordered` that `live` has not, or has with another value.
fn first_missing(ordered: &Value, live: &Value, path: &str) -> Option<String> {
    match (ordered, live) {
        (Value::Object(ordered), Value::Object(live)) => {
            ordered.iter().find_map(|(key, ordered)| {
                let path = format!("{path}.{key}");
                match live.get(key) {
                    Some(live) => first_missing(ordered, live, &path),
                    // The API server drops what is empty.
                    None if is_empty(ordered) => None,
                    None => Some(path),
                }
            })
        }
        (Value::Array(ordered), Value::Array(live)) => {
            match merge_key(ordered) {
                Some(key) => ordered.iter().find_map(|ordered| {
                    let path = format!("{path}[{}]", ordered[key]);
                    match live.iter().find(|live| live.get(key) == ordered.get(key)) {
                        Some(live) => first_missing(ordered, live, &path),
                        None => Some(path),
                    }
                }),
                None if ordered.len() == live.len() => ordered
                    .iter()
                    .zip(live)
                    .enumerate()
                    .find_map(|(index, (ordered, live))| {
                        first_missing(ordered, live, &format!("{path}[{index}]"))
                    }),
                None => Some(path.to_owned()),
            }
        }
        (ordered, live) if ordered == live => None,
        (ordered, live) if same_quantity(path, ordered, live) => None,
        _ => Some(path.to_owned()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The key by which the API server merges the elements of a list, so that elements added by others are left alone.
fn merge_key(items: &[Value]) -> Option<&'static str> {
    ["mountPath", "name", "uid"]
        .into_iter()
        .find(|key| !items.is_empty() && items.iter().all(|item| item.get(key).is_some()))
}

/// `0.1` and `100m` are the same amount: users write one, the API server stores the other.
fn same_quantity(path: &str, ordered: &Value, live: &Value) -> bool {
    if !(path.contains(".requests.")
        || path.contains(".limits.")
        || path.ends_with(".averageValue")
        || path.ends_with(".sizeLimit"))
    {
        return false;
    }
    match (
        ordered.as_str().and_then(parse_quantity),
        live.as_str().and_then(parse_quantity),
    ) {
        (Some(ordered), Some(live)) => ordered == live,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ordered() -> Value {
        with_hash(&json!({
            "metadata": { "name": "town-auth", "labels": { "a": "1" } },
            "spec": {
                "replicas": 2,
                "template": { "spec": { "containers": [
                    { "name": "auth", "args": ["serve", "auth"], "resources": { "requests": { "cpu": "0.1", "memory": "1Gi" } }, "env": [] },
                ] } },
            },
        }))
    }

    /// What the API server makes of it: defaults added, quantities made canonical, empty lists gone.
    fn live() -> Value {
        let mut live = ordered();
        live["metadata"]["resourceVersion"] = json!("7");
        live["metadata"]["labels"]["theirs"] = json!("x");
        live["spec"]["progressDeadlineSeconds"] = json!(600);
        let container = &mut live["spec"]["template"]["spec"]["containers"][0];
        container["imagePullPolicy"] = json!("Always");
        container["resources"]["requests"] = json!({ "cpu": "100m", "memory": "1024Mi" });
        container.as_object_mut().unwrap().remove("env");
        live
    }

    #[test]
    fn defaults_and_what_others_add_are_no_difference() {
        assert_eq!(difference(&ordered(), &live()), Difference::None);
        let mut live = live();
        live["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "name": "injected" }));
        assert_eq!(difference(&ordered(), &live), Difference::None);
    }

    #[test]
    fn another_order_is_told_from_drift() {
        let mut other: Value = ordered();
        other["metadata"]["annotations"][ORDER_HASH] = json!("other");
        assert_eq!(difference(&other, &live()), Difference::OtherOrder);
        let mut unmarked = live();
        unmarked["metadata"]["annotations"] = json!({});
        assert_eq!(difference(&ordered(), &unmarked), Difference::OtherOrder);
    }

    #[test]
    fn drift_names_the_field() {
        for (pointer, value, path) in [
            ("/spec/replicas", json!(3), ".spec.replicas"),
            ("/metadata/labels/a", json!("2"), ".metadata.labels.a"),
            (
                "/spec/template/spec/containers/0/args",
                json!(["serve"]),
                ".spec.template.spec.containers[\"auth\"].args",
            ),
            (
                "/spec/template/spec/containers/0/resources/requests/cpu",
                json!("200m"),
                ".spec.template.spec.containers[\"auth\"].resources.requests.cpu",
            ),
            (
                "/spec/template/spec/containers/0/name",
                json!("other"),
                ".spec.template.spec.containers[\"auth\"]",
            ),
        ] {
            let mut live = live();
            *live.pointer_mut(pointer).unwrap() = value;
            assert_eq!(
                difference(&ordered(), &live),
                Difference::Drift(path.to_owned())
            );
        }
        let mut live = live();
        live["spec"].as_object_mut().unwrap().remove("replicas");
        assert_eq!(
            difference(&ordered(), &live),
            Difference::Drift(".spec.replicas".to_owned())
        );
    }

    #[test]
    fn the_hash_depends_on_the_order_alone() {
        assert_eq!(ordered(), ordered());
        let other = with_hash(&json!({ "metadata": { "name": "other" } }));
        assert_ne!(
            ordered()["metadata"]["annotations"],
            other["metadata"]["annotations"]
        );
    }

    /// Else an amount that the API server stores in other words would be "repaired" at every pass.
    #[test]
    fn quantities_are_compared_by_amount() {
        for (ordered_amount, stored, same) in [
            ("0.1", "100m", true),
            ("1e9", "1G", true),
            ("0.5Ei", "512Pi", true),
            ("1G", "1Gi", false),
            ("x", "y", false),
        ] {
            let of = |amount: &str| json!({ "limits": { "memory": amount } });
            let missing = first_missing(&of(ordered_amount), &of(stored), "");
            assert_eq!(missing.is_none(), same, "{ordered_amount} {stored}");
        }
    }
}
