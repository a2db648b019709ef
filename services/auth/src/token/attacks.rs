//! What published vectors (Wycheproof's for JWS and Ed25519) and RFC 8725 warn of, made anew with keys of our own: each case begins with
//! what is accepted, so that it can't pass for another reason than its own.

use carillon_domain::ErrorCode;
use ed25519_dalek::{Signer, SigningKey, pkcs8::DecodePrivateKey};
use serde_json::{Value, json};

use super::*;

const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// The order of the group, little-endian (RFC 8032).
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// Somebody who signs whatever they like, with a key that is trusted.
struct Forge {
    key: SigningKey,
    keys: SigningKeys,
}

impl Forge {
    fn new() -> Self {
        let (pem, _) = SigningKeys::generate().unwrap();
        Self {
            key: SigningKey::from_pkcs8_pem(&pem).unwrap(),
            keys: SigningKeys::from_pem([&pem]).unwrap(),
        }
    }

    fn header(&self) -> Value {
        json!({"alg": "EdDSA", "typ": "JWT", "kid": self.keys.kid()})
    }

    /// The header with one more entry, or another value.
    fn header_with(&self, name: &str, value: Value) -> String {
        let mut header = self.header();
        header[name] = value;
        header.to_string()
    }

    /// Signs these texts, whatever they are.
    fn signed(&self, header: &str, claims: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = self.key.sign(message.as_bytes()).to_bytes();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn accepts(&self, token: &str) -> bool {
        let keys = self.keys.verifying_keys();
        match Claims::verify(token, &keys, TokenKind::Access, "town") {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Unauthenticated);
                false
            }
        }
    }

    fn accepts_header(&self, header: &str) -> bool {
        self.accepts(&self.signed(header, &claims().to_string()))
    }

    fn accepts_claims(&self, claims: &str) -> bool {
        self.accepts(&self.signed(&self.header().to_string(), claims))
    }
}

fn claims() -> Value {
    let ttl = Duration::from_secs(900);
    let (user, device) = (UserId::new(), DeviceId::new());
    let claims = Claims::new(TokenKind::Access, "town", user, device, NOW, ttl);
    serde_json::to_value(claims).unwrap()
}

/// AUTH-04: the header says how to check, and only what we would have said ourselves is believed.
#[test]
fn headers() {
    let forge = Forge::new();
    assert!(forge.accepts_header(&forge.header().to_string()));
    for alg in ["none", "HS256", "ES256", "RS256", "eddsa", "Ed25519", ""] {
        assert!(
            !forge.accepts_header(&forge.header_with("alg", json!(alg))),
            "{alg}"
        );
    }
    for alg in [json!(null), json!(["EdDSA"]), json!(1)] {
        assert!(!forge.accepts_header(&forge.header_with("alg", alg)));
    }
    for kid in [
        json!(null),
        json!(""),
        json!("../key"),
        json!(["a"]),
        json!({}),
        json!("x".repeat(1000)),
    ] {
        assert!(!forge.accepts_header(&forge.header_with("kid", kid)));
    }
    for typ in ["at+jwt", "dpop+jwt", "JOSE+JSON"] {
        assert!(
            !forge.accepts_header(&forge.header_with("typ", json!(typ))),
            "{typ}"
        );
    }
    // RFC 7515, 4.1.11: what must be understood and isn't.
    for crit in [
        json!(["b64"]),
        json!(["exp"]),
        json!([]),
        json!("b64"),
        json!({}),
    ] {
        assert!(!forge.accepts_header(&forge.header_with("crit", crit)));
    }
    let unencoded = json!({"alg": "EdDSA", "kid": forge.keys.kid(), "b64": false, "crit": ["b64"]});
    assert!(!forge.accepts_header(&unencoded.to_string()));
    // A name twice: readers differ in which one counts.
    let kid = forge.keys.kid();
    for twice in [
        format!(r#"{{"alg":"none","alg":"EdDSA","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"EdDSA","kid":"other","kid":"{kid}"}}"#),
    ] {
        assert!(!forge.accepts_header(&twice), "{twice}");
    }
    for odd in ["", "null", "[]", "\"EdDSA\"", "{", "{}x"] {
        assert!(!forge.accepts_header(odd), "{odd}");
    }
}

/// AUTH-04: a key that a token brings along, or names the place of, isn't used: neither to accept nor to refuse.
#[test]
fn keys_in_headers() {
    let (ours, theirs) = (Forge::new(), Forge::new());
    let x = URL_SAFE_NO_PAD.encode(theirs.key.verifying_key().as_bytes());
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": ours.keys.kid()});
    for (name, value) in [
        ("jwk", jwk),
        ("jku", json!("https://evil.example.com/jwks.json")),
        ("x5u", json!("https://evil.example.com/chain.pem")),
        ("x5c", json!(["MIIB"])),
    ] {
        let header = ours.header_with(name, value);
        let forged = theirs.signed(&header, &claims().to_string());
        assert!(!ours.accepts(&forged), "{name}");
        let plain = theirs.signed(&ours.header().to_string(), &claims().to_string());
        assert!(!ours.accepts(&plain), "{name}");
    }
}

/// AUTH-04: claims of the wrong form or content, rightly signed.
#[test]
fn claims_of_another_form() {
    let forge = Forge::new();
    assert!(forge.accepts_claims(&claims().to_string()));
    for (name, value) in [
        ("iss", json!("village")),
        ("iss", json!(["town"])),
        ("iss", json!(null)),
        ("aud", json!(REFRESH_AUDIENCE)),
        ("aud", json!([ACCESS_AUDIENCE, "other"])),
        ("aud", json!("")),
        ("type", json!("refresh")),
        ("type", json!("Access")),
        ("sub", json!("ann")),
        ("sub", json!(1)),
        ("jti", json!("")),
        ("did", json!(null)),
        ("exp", json!("1700000900")),
        ("exp", json!(1e300)),
        ("iat", json!([])),
    ] {
        let mut changed = claims();
        changed[name] = value.clone();
        assert!(
            !forge.accepts_claims(&changed.to_string()),
            "{name} {value}"
        );
    }
    for name in ["iss", "aud", "sub", "jti", "did", "type", "exp", "iat"] {
        let mut without = claims();
        without.as_object_mut().unwrap().remove(name);
        assert!(!forge.accepts_claims(&without.to_string()), "{name}");
    }
    let twice = claims()
        .to_string()
        .replacen('{', r#"{"type":"refresh","#, 1);
    assert!(!forge.accepts_claims(&twice));
    // Far beyond what a clock can show: never a panic, and never for ever.
    let mut eternal = claims();
    eternal["exp"] = json!(i64::MAX);
    let token = forge.signed(&forge.header().to_string(), &eternal.to_string());
    let keys = forge.keys.verifying_keys();
    let read = Claims::verify(&token, &keys, TokenKind::Access, "town").unwrap();
    assert!(read.check_time(NOW).is_ok());
    let mut past = claims();
    past["exp"] = json!(i64::MIN);
    let token = forge.signed(&forge.header().to_string(), &past.to_string());
    let read = Claims::verify(&token, &keys, TokenKind::Access, "town").unwrap();
    assert!(read.check_time(NOW).is_err());
}

/// AUTH-04: signatures that a lax check lets through.
#[test]
fn signatures() {
    let forge = Forge::new();
    let token = forge.signed(&forge.header().to_string(), &claims().to_string());
    assert!(forge.accepts(&token));
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let with = |bytes: &[u8]| format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes));
    assert!(forge.accepts(&with(&signature)));
    // The same signature with S + L: one token would have two texts.
    let mut malleated = signature.clone();
    let mut carry = 0u16;
    for (byte, order) in malleated[32..].iter_mut().zip(ORDER) {
        carry += u16::from(*byte) + u16::from(order);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert!(!forge.accepts(&with(&malleated)), "S + L");
    let (r, s) = signature.split_at(32);
    for bad in [
        vec![],
        vec![0; 64],
        signature[..63].to_vec(),
        [&signature[..], &[0]].concat(),
        [s, r].concat(),
        [r, &[0; 32]].concat(),
        [&[0; 32], s].concat(),
        [r, &ORDER].concat(),
        [&signature[..], &signature[..]].concat(),
    ] {
        assert!(!forge.accepts(&with(&bad)), "{bad:?}");
    }
    // A neutral element as R and zero as S hold for every message under a key of small order: ours isn't one.
    let mut neutral = [0; 64];
    neutral[0] = 1;
    assert!(!forge.accepts(&with(&neutral)));
}

/// AUTH-04: one token has one text: no padding, no other alphabet, no blanks, no fourth part, no JSON form.
#[test]
fn other_texts_of_a_token() {
    let forge = Forge::new();
    let token = forge.signed(&forge.header().to_string(), &claims().to_string());
    assert!(forge.accepts(&token));
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        panic!("three parts");
    };
    let flattened = json!({"protected": header, "payload": claims, "signature": signature});
    // 64 bytes end in a digit of which four bits count.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let place = alphabet.find(last).unwrap();
    let same_bits = &alphabet[place + 1..place + 2];
    let stem = &signature[..signature.len() - 1];
    for other in [
        format!("{token}=="),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}.{claims}.{stem}{same_bits}"),
        format!("{header}.{claims}.{signature}."),
        format!("{header}.{claims}.{signature}.{signature}"),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!(".{claims}.{signature}"),
        format!("{header}..{signature}"),
        format!("Bearer {token}"),
        flattened.to_string(),
        format!("{header}.{claims}.{signature}").replace('.', ".."),
        // Five parts: an encrypted one.
        format!("{header}..{claims}.{signature}.{signature}"),
    ] {
        assert!(!forge.accepts(&other), "{other}");
    }
}

/// AUTH-04: what is huge is refused before it is read.
#[test]
fn huge_tokens() {
    let forge = Forge::new();
    let mut wide = claims();
    wide["more"] = json!("x".repeat(MAX_TOKEN_BYTES));
    assert!(!forge.accepts_claims(&wide.to_string()));
    let mut small = claims();
    small["more"] = json!("x".repeat(64));
    assert!(forge.accepts_claims(&small.to_string()));
    assert!(!forge.accepts(&".".repeat(10_000_000)));
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    assert!(!forge.accepts_claims(&deep));
    assert!(!forge.accepts_header(&deep));
}
