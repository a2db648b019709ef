//! Takes secrets out of texts: nobody means to write one there, and a bundle goes to strangers.

/// The text without credentials in URLs, without JSON Web Tokens, bearer tokens and PEM blocks.
pub fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN ") {
            in_pem = !line.contains("-----END ");
            redacted.push_str("[PEM]\n");
        } else if in_pem {
            in_pem = !line.contains("-----END ");
        } else {
            redacted.push_str(&tokens(&urls(line)));
        }
    }
    redacted
}

/// `scheme://user:password@host` becomes `scheme://[credentials]@host`.
fn urls(line: &str) -> String {
    let mut redacted = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        redacted.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || "/?#\"'\\,<>".contains(c))
            .unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(host) => {
                redacted.push_str("[credentials]");
                rest = &after[host..];
            }
            None => rest = after,
        }
    }
    redacted.push_str(rest);
    redacted
}

/// Words that are a token: three parts of base64 that begin as JSON does, or whatever follows `Bearer`.
fn tokens(line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.~+/=".contains(c);
    let mut redacted = String::new();
    let mut rest = line;
    let mut after_bearer = false;
    while !rest.is_empty() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if word == 0 {
            let other = rest.find(is_word).unwrap_or(rest.len());
            redacted.push_str(&rest[..other]);
            rest = &rest[other..];
            continue;
        }
        let (this, after) = rest.split_at(word);
        let is_jwt = this.contains("eyJ") && this.matches('.').count() >= 2;
        let is_token = is_jwt || after_bearer && this.len() >= 16;
        redacted.push_str(if is_token { "[token]" } else { this });
        after_bearer = this.eq_ignore_ascii_case("bearer");
        rest = after;
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for (text, expected) in [
            (
                "url: amqp://guest:s3cret@rabbit:5672/%2f\n",
                "url: amqp://[credentials]@rabbit:5672/%2f\n",
            ),
            (
                "{\"a\":\"redis://:p@ss@redis:6379\",\"b\":\"http://h/x@y\"}",
                "{\"a\":\"redis://[credentials]@redis:6379\",\"b\":\"http://h/x@y\"}",
            ),
            (
                "token=eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl end",
                "[token] end",
            ),
            (
                "Authorization: Bearer 0123456789abcdef0123456789abcdef",
                "Authorization: Bearer [token]",
            ),
            ("a Bearer of news", "a Bearer of news"),
            (
                "key: |\n  -----BEGIN PRIVATE KEY-----\n  MC4CAQ\n  -----END PRIVATE KEY-----\nafter: 1\n",
                "key: |\n[PEM]\nafter: 1\n",
            ),
            ("image: carillon:0.1.0\n", "image: carillon:0.1.0\n"),
        ] {
            assert_eq!(redact(text), expected);
        }
    }
}
