//! Which types of files are taken, and whether the bytes are what the name says.
//!
//! A type is taken only when it is in [`TYPES`]. [`REFUSED`] lists the others that people try, so that the answer can name the
//! reason: they run, or a browser runs what is in them.

use carillon_domain::{Error, ErrorCode, Result};

/// Refused by their extension, with a clearer answer than "unknown". Everything else outside of [`TYPES`] is refused too.
pub(crate) const REFUSED: [&str; 55] = [
    "apk", "app", "appimage", "bash", "bat", "bin", "class", "cmd", "com", "cpl", "deb", "dll",
    "dmg", "docm", "elf", "exe", "gadget", "hta", "htm", "html", "inf", "ipa", "iso", "jar", "js",
    "jse", "lnk", "mht", "mhtml", "mjs", "msi", "msp", "php", "pif", "pl", "pptm", "ps1", "py",
    "rb", "reg", "rpm", "scr", "sh", "so", "svg", "svgz", "swf", "vbe", "vbs", "wasm", "wsf",
    "xht", "xhtml", "xlsm", "xml",
];

/// How the bytes of a type are checked.
enum Bytes {
    /// Their beginning says one of these types.
    Magic(&'static [&'static str]),
    /// UTF-8 text without control characters, that isn't the source of something else.
    Text,
}

/// Extensions, the content type they are stored with, and the check. A file of a type whose own magic isn't known to the
/// detector's first match (office files are zip archives) lists each answer that is right.
const TYPES: &[(&[&str], &str, Bytes)] = &[
    (
        &["jpg", "jpeg"],
        "image/jpeg",
        Bytes::Magic(&["image/jpeg"]),
    ),
    (&["png"], "image/png", Bytes::Magic(&["image/png"])),
    (&["gif"], "image/gif", Bytes::Magic(&["image/gif"])),
    (&["webp"], "image/webp", Bytes::Magic(&["image/webp"])),
    (&["bmp"], "image/bmp", Bytes::Magic(&["image/bmp"])),
    (
        &["tif", "tiff"],
        "image/tiff",
        Bytes::Magic(&["image/tiff"]),
    ),
    (
        &["heic", "heif"],
        "image/heif",
        Bytes::Magic(&["image/heif"]),
    ),
    (&["avif"], "image/avif", Bytes::Magic(&["image/avif"])),
    (
        &["mp4"],
        "video/mp4",
        Bytes::Magic(&["video/mp4", "video/x-m4v"]),
    ),
    (
        &["m4v"],
        "video/mp4",
        Bytes::Magic(&["video/x-m4v", "video/mp4"]),
    ),
    (
        &["mov"],
        "video/quicktime",
        Bytes::Magic(&["video/quicktime"]),
    ),
    (
        &["webm"],
        "video/webm",
        Bytes::Magic(&["video/webm", "video/x-matroska"]),
    ),
    (
        &["mkv"],
        "video/x-matroska",
        Bytes::Magic(&["video/x-matroska"]),
    ),
    (
        &["avi"],
        "video/x-msvideo",
        Bytes::Magic(&["video/x-msvideo"]),
    ),
    (
        &["mpg", "mpeg"],
        "video/mpeg",
        Bytes::Magic(&["video/mpeg"]),
    ),
    (&["mp3"], "audio/mpeg", Bytes::Magic(&["audio/mpeg"])),
    (
        &["m4a"],
        "audio/mp4",
        Bytes::Magic(&["audio/m4a", "video/mp4"]),
    ),
    (
        &["ogg", "oga", "opus"],
        "audio/ogg",
        Bytes::Magic(&["audio/ogg", "audio/opus"]),
    ),
    (&["flac"], "audio/flac", Bytes::Magic(&["audio/x-flac"])),
    (&["wav"], "audio/wav", Bytes::Magic(&["audio/x-wav"])),
    (&["aac"], "audio/aac", Bytes::Magic(&["audio/aac"])),
    (&["amr"], "audio/amr", Bytes::Magic(&["audio/amr"])),
    (
        &["pdf"],
        "application/pdf",
        Bytes::Magic(&["application/pdf"]),
    ),
    (
        &["rtf"],
        "application/rtf",
        Bytes::Magic(&["application/rtf"]),
    ),
    (
        &["doc"],
        "application/msword",
        Bytes::Magic(&["application/msword"]),
    ),
    (
        &["xls"],
        "application/vnd.ms-excel",
        Bytes::Magic(&["application/vnd.ms-excel"]),
    ),
    (
        &["ppt"],
        "application/vnd.ms-powerpoint",
        Bytes::Magic(&["application/vnd.ms-powerpoint"]),
    ),
    (
        &["docx"],
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        Bytes::Magic(&[
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            "application/zip",
        ]),
    ),
    (
        &["xlsx"],
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        Bytes::Magic(&[
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            "application/zip",
        ]),
    ),
    (
        &["pptx"],
        "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        Bytes::Magic(&[
            "application/vnd.openxmlformats-officedocument.presentationml.presentation",
            "application/zip",
        ]),
    ),
    (
        &["odt"],
        "application/vnd.oasis.opendocument.text",
        Bytes::Magic(&["application/vnd.oasis.opendocument.text"]),
    ),
    (
        &["ods"],
        "application/vnd.oasis.opendocument.spreadsheet",
        Bytes::Magic(&["application/vnd.oasis.opendocument.spreadsheet"]),
    ),
    (
        &["odp"],
        "application/vnd.oasis.opendocument.presentation",
        Bytes::Magic(&["application/vnd.oasis.opendocument.presentation"]),
    ),
    (
        &["epub"],
        "application/epub+zip",
        Bytes::Magic(&["application/epub+zip"]),
    ),
    (
        &["zip"],
        "application/zip",
        Bytes::Magic(&["application/zip"]),
    ),
    (
        &["gz", "tgz"],
        "application/gzip",
        Bytes::Magic(&["application/gzip"]),
    ),
    (
        &["bz2"],
        "application/x-bzip2",
        Bytes::Magic(&["application/x-bzip2"]),
    ),
    (
        &["xz"],
        "application/x-xz",
        Bytes::Magic(&["application/x-xz"]),
    ),
    (
        &["zst"],
        "application/zstd",
        Bytes::Magic(&["application/zstd"]),
    ),
    (
        &["7z"],
        "application/x-7z-compressed",
        Bytes::Magic(&["application/x-7z-compressed"]),
    ),
    (
        &["tar"],
        "application/x-tar",
        Bytes::Magic(&["application/x-tar"]),
    ),
    (&["txt", "log"], "text/plain", Bytes::Text),
    (&["md"], "text/markdown", Bytes::Text),
    (&["csv"], "text/csv", Bytes::Text),
    (&["tsv"], "text/tab-separated-values", Bytes::Text),
    (&["json"], "application/json", Bytes::Text),
    (&["yaml", "yml"], "application/yaml", Bytes::Text),
    (&["toml"], "application/toml", Bytes::Text),
    (&["ics"], "text/calendar", Bytes::Text),
    (&["vcf"], "text/vcard", Bytes::Text),
];

/// The content type of a file with this extension and these bytes; `UnsupportedMediaType` when the type isn't taken or the two
/// disagree.
pub(crate) fn content_type(extension: Option<&str>, bytes: &[u8]) -> Result<&'static str> {
    let Some(extension) = extension else {
        return Err(refused(
            "the file name needs an extension that says its type",
        ));
    };
    if REFUSED.contains(&extension) {
        return Err(refused(
            "programs, scripts and web pages (HTML, SVG, XML) are not taken",
        ));
    }
    let found = TYPES
        .iter()
        .find(|(extensions, ..)| extensions.contains(&extension));
    let Some((_, content_type, check)) = found else {
        return Err(refused("files with this extension are not taken"));
    };
    let agree = match check {
        Bytes::Magic(types) => {
            infer::get(bytes).is_some_and(|kind| types.contains(&kind.mime_type()))
        }
        Bytes::Text => is_plain_text(bytes),
    };
    if agree {
        Ok(content_type)
    } else {
        Err(refused("the file's content is not what its extension says"))
    }
}

/// UTF-8 without control characters can't be a binary format, however it begins; the text formats that something runs or
/// renders are found by their beginning.
fn is_plain_text(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let plain = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\u{c}');
    let begins = text.trim_start_matches('\u{feff}').trim_start();
    text.chars().all(plain)
        && ![
            "<?",
            "<!",
            "<svg",
            "<html",
            "<script",
            "#!",
            "%!",
            "%PDF",
            "{\\rtf",
            "MIME-Version:",
        ]
        .iter()
        .any(|start| starts_with_ignoring_case(begins, start))
        && infer::get(begins.as_bytes())
            .is_none_or(|kind| kind.matcher_type() != infer::MatcherType::Text)
}

fn starts_with_ignoring_case(text: &str, start: &str) -> bool {
    text.as_bytes()
        .get(..start.len())
        .is_some_and(|beginning| beginning.eq_ignore_ascii_case(start.as_bytes()))
}

fn refused(detail: &'static str) -> Error {
    Error::new(ErrorCode::UnsupportedMediaType, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0";
    const JPEG: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01";
    const EXE: &[u8] = b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0";
    const ELF: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    fn takes(extension: &str, bytes: &[u8]) -> bool {
        match content_type(Some(extension), bytes) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::UnsupportedMediaType);
                false
            }
        }
    }

    /// MEDIA-01: extension and bytes agree.
    #[test]
    fn files_that_are_what_they_say_are_taken() {
        assert_eq!(content_type(Some("png"), PNG).unwrap(), "image/png");
        assert_eq!(content_type(Some("jpeg"), JPEG).unwrap(), "image/jpeg");
        assert_eq!(
            content_type(Some("pdf"), b"%PDF-1.7\n").unwrap(),
            "application/pdf"
        );
        assert_eq!(
            content_type(Some("zip"), b"PK\x03\x04\x14\0\0\0").unwrap(),
            "application/zip"
        );
        for (extension, text) in [
            ("txt", "Grüße\r\n\tan alle"),
            ("csv", "a;b\n1;2"),
            ("json", "{\"a\": 1}"),
            // Begins like a bitmap and like a program, and is neither.
            ("txt", "BMW builds cars"),
            ("md", "MZ is short for Mark Zbikowski"),
        ] {
            assert!(takes(extension, text.as_bytes()), "{extension}: {text}");
        }
    }

    /// MEDIA-01: extension and bytes disagree.
    #[test]
    fn files_that_pretend_are_refused() {
        for (extension, bytes) in [
            ("png", JPEG),
            ("jpg", PNG),
            ("jpg", EXE),
            (
                "png",
                b"<svg xmlns='http://www.w3.org/2000/svg'>".as_slice(),
            ),
            ("pdf", b"hello"),
            ("png", b""),
            ("txt", PNG),
            ("txt", EXE),
            ("txt", b"\xff\xfeh\0i\0"),
            ("txt", b"nul\0byte"),
            ("txt", b"<!DOCTYPE html><p>hi"),
            ("md", b"  <script>alert(1)</script>"),
            ("csv", b"\xef\xbb\xbf<html><body>"),
            ("json", b"#!/bin/sh\nrm -rf /"),
            ("txt", b"<?xml version='1.0'?><svg/>"),
            ("log", b"%!PS-Adobe-3.0"),
        ] {
            assert!(!takes(extension, bytes), "{extension}: {bytes:?}");
        }
    }

    /// MEDIA-01: refused types, whatever their bytes, and types that nobody knows.
    #[test]
    fn refused_types() {
        for extension in REFUSED {
            for bytes in [EXE, ELF, b"text".as_slice(), PNG] {
                assert!(!takes(extension, bytes), "{extension}");
            }
            assert!(
                TYPES.iter().all(|(taken, ..)| !taken.contains(&extension)),
                "{extension} is in both lists"
            );
        }
        assert!(!takes("unknown", b"text"));
        assert!(content_type(None, b"text").is_err());
    }
}
