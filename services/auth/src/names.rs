//! One way to write what may be written in several: e-mail addresses that are the same to everybody who delivers to them.
//!
//! Usernames need none of it: they are ASCII, and compared without case.

use unicode_normalization::UnicodeNormalization;

/// The form in which an address is stored and looked up: the domain as DNS has it (IDNA, UTS 46), the rest in NFKC, all lower-case. What
/// isn't an address at all comes back in lower-case.
pub(crate) fn email(text: &str) -> String {
    let text = text.trim();
    let same: String = text
        .nfkc()
        .collect::<String>()
        .to_lowercase()
        .nfkc()
        .collect();
    // The last one: what stands before it may be quoted.
    let Some((local, domain)) = same.rsplit_once('@') else {
        return same;
    };
    match idna::domain_to_ascii(domain) {
        Ok(domain) if !domain.is_empty() => format!("{local}@{domain}"),
        _ => same,
    }
}

#[cfg(test)]
mod tests {
    use super::email;

    /// AUTH-09: ways to write one mailbox are one name; other mailboxes stay others, however much they look alike.
    #[test]
    fn addresses_have_one_form() {
        for (written, form) in [
            (" Ann@Example.COM ", "ann@example.com"),
            ("a\u{308}nn@example.com", "änn@example.com"),
            ("ÄNN@example.com", "änn@example.com"),
            ("\u{ff21}nn@example.com", "ann@example.com"),
            ("ann@Bücher.example", "ann@xn--bcher-kva.example"),
            ("ann@bu\u{308}cher.example", "ann@xn--bcher-kva.example"),
            ("ann@xn--bcher-kva.example", "ann@xn--bcher-kva.example"),
            ("ann", "ann"),
        ] {
            assert_eq!(email(written), form, "{written}");
            assert_eq!(email(&email(written)), form, "{written} twice");
        }
        // A Cyrillic letter.
        assert_ne!(email("\u{430}nn@example.com"), email("ann@example.com"));
    }
}
