//! `Monitored`: what `spec.monitoring` asks for is there. It concerns nobody who chats, so it changes no other condition.

use super::{Observation, Verdict};

/// `None` when nothing is asked for.
pub(super) fn verdict(seen: &Observation) -> Option<Verdict> {
    let asked = seen.monitoring.as_ref()?;
    if let Some(refused) = &asked.refused {
        return Some(Verdict::no(
            "Refused",
            format!("what spec.monitoring asks for couldn't all be made: {refused}"),
        ));
    }
    if asked.unknown_kinds.is_empty() {
        return Some(Verdict::yes("AsOrdered", "what is asked for is there"));
    }
    Some(Verdict::no(
        "DefinitionMissing",
        format!(
            "the API server doesn't know {} (monitoring.coreos.com/v1): install the definitions of the Prometheus operator, which are \
             looked for again every minute, or take it out of spec.monitoring",
            asked.unknown_kinds.join(" and ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Monitoring;
    use crate::status::tests::settled;

    /// An upgrade ends, and nothing is degraded.
    #[test]
    fn what_is_refused_concerns_nobody_else() {
        let mut seen = settled();
        seen.monitoring = Some(Monitoring {
            refused: Some("PodMonitor town: no".to_owned()),
            ..Monitoring::default()
        });
        let verdict = verdict(&seen).unwrap();
        assert_eq!(
            (verdict.status, verdict.reason.as_str()),
            ("False", "Refused")
        );
        assert!(verdict.message.contains("PodMonitor town: no"));
        assert!(seen.is_settled() && seen.failure.is_none());
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut seen = settled();
        assert_eq!(verdict(&seen), None);
        seen.monitoring = Some(Monitoring::default());
        assert_eq!(verdict(&seen).unwrap().status, "True");
        seen.monitoring = Some(Monitoring {
            unknown_kinds: vec!["PodMonitor".to_owned(), "PrometheusRule".to_owned()],
            refused: None,
        });
        let verdict = verdict(&seen).unwrap();
        assert_eq!(verdict.status, "False");
        assert!(
            verdict
                .message
                .starts_with("the API server doesn't know PodMonitor and PrometheusRule"),
            "{}",
            verdict.message
        );
    }
}
