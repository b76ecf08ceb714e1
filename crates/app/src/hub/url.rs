//! The few operations on addresses that downloads need.

/// Splits an address of HTTP into its origin, `https://host:port`, and the rest. `None` for other schemes,
/// and for addresses with a user's name or without a host.
pub(super) fn origin_and_path(url: &str) -> Option<(&str, &str)> {
    let scheme = ["https://", "http://"].into_iter().find(|scheme| url.starts_with(scheme))?;
    let rest = &url[scheme.len()..];
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let authority = &rest[..end];
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let is_plain = !authority.is_empty() && authority.chars().all(is_host);
    is_plain.then(|| url.split_at(scheme.len() + end))
}

/// The host of an address, for messages.
pub(super) fn host(url: &str) -> String {
    let origin = origin_and_path(url).map_or(url, |(origin, _)| origin);
    origin.split_once("://").map_or(origin, |(_, host)| host).to_string()
}

/// The address without its query, which may hold a signature.
pub(super) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// The address that a `Location` header leads to. `None` for another scheme than HTTP's, or a way from HTTPS
/// to HTTP.
pub(super) fn followed(from: &str, location: &str) -> Option<String> {
    let (origin, path) = origin_and_path(from)?;
    let to = if location.contains("://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", origin.split_once("://")?.0)
    } else if location.starts_with('/') {
        format!("{origin}{location}")
    } else {
        let folder = without_query(path).rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{origin}{folder}/{location}")
    };
    let is_downgrade = from.starts_with("https://") && !to.starts_with("https://");
    (origin_and_path(&to).is_some() && !is_downgrade).then_some(to)
}

/// A text with every byte escaped that may not stand in a part of a path.
pub(super) fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// A path with its parts escaped.
pub(super) fn encoded_path(path: &str) -> String {
    path.split('/').map(encoded).collect::<Vec<_>>().join("/")
}

/// A text with its escapes replaced; `None` if they are malformed.
pub(super) fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_followed_where_that_is_safe() {
        let from = "https://hub.co/a/b?x=1";
        for (location, to) in [
            ("https://cdn.co/x?sig=1", Some("https://cdn.co/x?sig=1")),
            ("/c", Some("https://hub.co/c")),
            ("c", Some("https://hub.co/a/c")),
            ("//cdn.co/c", Some("https://cdn.co/c")),
            ("http://hub.co/c", None),
            ("file:///etc/passwd", None),
            ("https://hub.co@evil.co/c", None),
            ("https:///c", None),
        ] {
            assert_eq!(followed(from, location).as_deref(), to, "{location}");
        }
        assert_eq!(origin_and_path("https://hub.co\\@evil.co/c"), Some(("https://hub.co", "\\@evil.co/c")));
    }

    #[test]
    fn escapes_are_undone() {
        let text = "a b/é%.safetensors";
        assert_eq!(encoded(text), "a%20b%2F%C3%A9%25.safetensors");
        assert_eq!(decoded(&encoded(text)).as_deref(), Some(text));
        assert_eq!(encoded_path("a b/c"), "a%20b/c");
        for malformed in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(decoded(malformed), None, "{malformed}");
        }
    }
}
