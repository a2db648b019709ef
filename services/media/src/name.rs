//! File names as clients send them, made safe to show and to save.

/// Longest name that is kept, in bytes.
const MAX_BYTES: usize = 255;

/// The name without folders, control characters and characters that reverse text; `None` when nothing is left. Cut to 255 bytes,
/// keeping the extension.
pub(crate) fn clean(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let shown: String = last.chars().filter(|c| !is_hidden(*c)).collect();
    let trimmed = shown.trim().trim_end_matches(['.', ' ']);
    if trimmed.is_empty() || trimmed.chars().all(|c| c == '.') {
        return None;
    }
    if trimmed.len() <= MAX_BYTES {
        return Some(trimmed.to_owned());
    }
    match extension_start(trimmed) {
        Some(dot) if trimmed.len() - dot <= 32 => {
            let tail = &trimmed[dot..];
            Some(format!("{}{tail}", cut(trimmed, MAX_BYTES - tail.len())))
        }
        _ => Some(cut(trimmed, MAX_BYTES).to_owned()),
    }
}

/// The extension in lower case, without its dot.
pub(crate) fn extension(name: &str) -> Option<String> {
    let dot = extension_start(name)?;
    Some(name[dot + 1..].to_ascii_lowercase()).filter(|text| !text.is_empty())
}

fn extension_start(name: &str) -> Option<usize> {
    name.rfind('.').filter(|&dot| dot > 0)
}

fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Control characters, and the invisible ones that make "gpj.exe" look like "exe.jpg".
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MEDIA-01: names with folders, tricks and nothing in them.
    #[test]
    fn names_are_cleaned() {
        for (given, cleaned) in [
            ("photo.jpg", "photo.jpg"),
            ("../../etc/passwd.txt", "passwd.txt"),
            (r"C:\Users\ann\cat.png", "cat.png"),
            ("a\0b\r\n.txt", "ab.txt"),
            ("cat\u{202e}gpj.png", "catgpj.png"),
            (" spaced name.txt . ", "spaced name.txt"),
            ("смета.pdf", "смета.pdf"),
        ] {
            assert_eq!(clean(given).as_deref(), Some(cleaned), "{given:?}");
        }
        for nothing in ["", "..", "/", "a/", "\u{202e}", " . "] {
            assert_eq!(clean(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn long_names_keep_their_extension() {
        let cleaned = clean(&format!("{}.jpeg", "ä".repeat(400))).unwrap();
        assert!(cleaned.len() <= MAX_BYTES && cleaned.ends_with("ä.jpeg"));
    }

    #[test]
    fn extensions() {
        assert_eq!(extension("a.b.PNG").as_deref(), Some("png"));
        for none in ["png", ".png", "a."] {
            assert_eq!(extension(none), None, "{none}");
        }
    }

    proptest! {
        /// MEDIA-01: whatever comes in, what goes out is a plain name.
        #[test]
        fn a_cleaned_name_is_safe(name in ".{0,400}") {
            if let Some(cleaned) = clean(&name) {
                prop_assert!((1..=MAX_BYTES).contains(&cleaned.len()));
                prop_assert!(!cleaned.contains(['/', '\\', '\0', '\n', '\r']));
                prop_assert!(cleaned != "." && cleaned != "..");
                prop_assert_eq!(clean(&cleaned), Some(cleaned));
            }
        }
    }
}
