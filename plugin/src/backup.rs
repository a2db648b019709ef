//! A ChatBackup now, to where the others of its ChatCluster are kept: the plugin asks for no bucket and no credentials.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kubectl::{Kubectl, name_of};

/// Makes a ChatBackup and says how to follow it.
pub fn make(kubectl: &Kubectl, name: Option<&str>, like: Option<&str>) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let name = name_of(&cluster);
    let text = kubectl.output(&["get", "chatbackups.carillon.chat", "--output=json"])?;
    let list: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
    let backups = list["items"].as_array().context("no list")?;
    let place = place(backups, name, like)?;
    let backup = json!({
        "apiVersion": "carillon.chat/v1alpha1",
        "kind": "ChatBackup",
        "metadata": { "generateName": format!("{}-", name.get(..30).unwrap_or(name)) },
        "spec": { "cluster": name, "to": place },
    });
    let made = kubectl.create(&backup)?;
    println!("{made} made; `kubectl get chatbackups --watch` shows how it goes");
    Ok(())
}

/// Where the ChatCluster's backups are kept.
fn place<'a>(backups: &'a [Value], cluster: &str, like: Option<&str>) -> Result<&'a Value> {
    let mut of_cluster = backups.iter().filter(|backup| {
        backup["spec"]["cluster"] == cluster && like.is_none_or(|like| name_of(backup) == like)
    });
    let Some(first) = of_cluster.next() else {
        match like {
            Some(like) => bail!("ChatCluster {cluster} has no ChatBackup {like}"),
            None => bail!(
                "ChatCluster {cluster} has no ChatBackup yet whose place could be used; docs/backup.md has one"
            ),
        }
    };
    let place = &first["spec"]["to"];
    ensure!(
        of_cluster.all(|backup| backup["spec"]["to"] == *place),
        "the ChatBackups of {cluster} are kept in several places; name one with --like"
    );
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(name: &str, cluster: &str, bucket: &str) -> Value {
        json!({
            "metadata": { "name": name },
            "spec": { "cluster": cluster, "to": { "s3": { "bucket": bucket } } },
        })
    }

    #[test]
    fn the_place_is_that_of_the_others() {
        let mut backups = vec![
            backup("nightly", "town", "one"),
            backup("other", "city", "two"),
            backup("weekly", "town", "one"),
        ];
        let bucket = |backups: &[Value], cluster: &str, like| {
            place(backups, cluster, like).map(|place| place["s3"]["bucket"].clone())
        };
        assert_eq!(bucket(&backups, "town", None).unwrap(), "one");
        assert!(bucket(&backups, "village", None).is_err());
        assert!(bucket(&backups, "town", Some("other")).is_err());
        backups.push(backup("far", "town", "three"));
        assert!(bucket(&backups, "town", None).is_err());
        assert_eq!(bucket(&backups, "town", Some("far")).unwrap(), "three");
    }
}
