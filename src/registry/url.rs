//! Registry URLs and the policy for requests: allowed schemes, origins that get credentials, private addresses. The
//! `url` crate parses and resolves them (WHATWG URL).

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use url::Host;

/// An absolute `http` or `https` URL without user and fragment. Requests use it exactly as it prints, so the checks
/// here hold for what is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Url(url::Url);

impl Url {
    /// Parses an absolute URL.
    pub fn parse(text: &str) -> Option<Url> {
        Url::check(url::Url::parse(text).ok()?)
    }

    /// The root URL of the server `HOST` or `HOST:PORT`.
    pub fn of_server(authority: &str, https: bool) -> Option<Url> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        let scheme = if https { "https" } else { "http" };
        authority.chars().all(plain).then(|| Url::parse(&format!("{scheme}://{authority}/"))).flatten()
    }

    /// Resolves `reference`, found in an answer, against this URL.
    pub fn join(&self, reference: &str) -> Option<Url> {
        Url::check(self.0.join(reference).ok()?)
    }

    fn check(mut url: url::Url) -> Option<Url> {
        url.set_fragment(None);
        let is_plain = url.username().is_empty() && url.password().is_none();
        (matches!(url.scheme(), "http" | "https") && is_plain).then_some(Url(url))
    }

    /// The URL with this path (and query, if it has one) on the same server.
    pub fn with_path(&self, path: &str) -> Url {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.0.clone();
        url.set_path(path);
        url.set_query(query);
        Url(url)
    }

    /// The URL with parameters appended to its query.
    pub fn with_query(&self, more: &str) -> Url {
        let mut url = self.0.clone();
        let known = url.query().filter(|query| !query.is_empty());
        let query = known.map_or_else(|| more.to_owned(), |known| format!("{known}&{more}"));
        url.set_query(Some(&query));
        Url(url)
    }

    /// Whether it is `https`.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// `HOST`, or `HOST:PORT` if the port is not the scheme's default.
    pub fn authority(&self) -> &str {
        self.0.authority()
    }

    /// Whether both have the same scheme, host and port.
    pub fn same_origin(&self, other: &Url) -> bool {
        self.0.origin() == other.0.origin()
    }

    /// Whether both have the same host, whatever scheme and port.
    pub fn same_host(&self, other: &Url) -> bool {
        self.0.host() == other.0.host()
    }

    /// Whether the host is a name, not an address.
    pub fn is_named(&self) -> bool {
        self.name().is_some()
    }

    /// Whether the host is a loopback name or address, judged without resolving names.
    pub fn is_loopback(&self) -> bool {
        self.name() == Some("localhost") || self.address().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether the host is a private or loopback address, or a name that resolves to one. A name that cannot be
    /// resolved is not private.
    pub fn is_private(&self) -> bool {
        if let Some(ip) = self.address() {
            return is_private(ip);
        }
        let Some(name) = self.name() else { return false };
        let is_local = name == "localhost" || name.ends_with(".localhost");
        is_local || (name, 443).to_socket_addrs().is_ok_and(|mut all| all.any(|a| is_private(a.ip().to_canonical())))
    }

    /// The host's name without a trailing dot.
    fn name(&self) -> Option<&str> {
        match self.0.host() {
            Some(Host::Domain(name)) => Some(name.strip_suffix('.').unwrap_or(name)),
            _ => None,
        }
    }

    /// The host's address; an IPv4-mapped IPv6 address counts as IPv4.
    fn address(&self) -> Option<IpAddr> {
        match self.0.host()? {
            Host::Domain(_) => None,
            Host::Ipv4(ip) => Some(ip.into()),
            Host::Ipv6(ip) => Some(ip.to_canonical()),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_broadcast() || a == 0 || shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback() || v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap_or_else(|| panic!("{text} is no URL"))
    }

    /// The URL, after asserting that the HTTP client parses the same host, port, path and query from it.
    fn sent(url: &Url) -> String {
        let text = url.to_string();
        let uri: ureq::http::Uri = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!((uri.scheme_str(), uri.host()), (Some(url.0.scheme()), url.0.host_str()), "{text}");
        assert_eq!(uri.port_u16(), url.0.port(), "{text}");
        assert_eq!((uri.path(), uri.query()), (url.0.path(), url.0.query()), "{text}");
        assert_eq!(uri.to_string(), text);
        text
    }

    #[test]
    fn references_are_resolved() {
        let base = url("https://Reg.example:5000/v2/r/i/blobs/sha256:ab?n=2#f");
        for (reference, want) in [
            ("/v2/x?last=b", "https://reg.example:5000/v2/x?last=b"),
            ("?last=b", "https://reg.example:5000/v2/r/i/blobs/sha256:ab?last=b"),
            ("other", "https://reg.example:5000/v2/r/i/blobs/other"),
            ("#only-a-fragment", "https://reg.example:5000/v2/r/i/blobs/sha256:ab?n=2"),
            ("../../../../s3/sha256:ab?sig=x", "https://reg.example:5000/s3/sha256:ab?sig=x"),
            ("../../../../../../../s3", "https://reg.example:5000/s3"),
            ("./a/../b/.", "https://reg.example:5000/v2/r/i/blobs/b/"),
            ("/a/b/..", "https://reg.example:5000/a/"),
            ("/a/%2e%2E/b/%2e/c", "https://reg.example:5000/b/c"),
            ("..\\x\\y", "https://reg.example:5000/v2/r/i/x/y"),
            ("x?a/../b", "https://reg.example:5000/v2/r/i/blobs/x?a/../b"),
            ("//cdn/x", "https://cdn/x"),
            ("\\\\cdn\\x", "https://cdn/x"),
            ("https:x", "https://reg.example:5000/v2/r/i/blobs/x"),
            ("https://good.example\\@evil.example:x/", "https://good.example/@evil.example:x/"),
            ("HTTP://CDN:1/x?u=http://y", "http://cdn:1/x?u=http://y"),
            ("https://cdn:443", "https://cdn/"),
            ("http://cdn:80/%7e/%2F//", "http://cdn/%7e/%2F//"),
            ("https://cdn:/x", "https://cdn/x"),
            ("https://b\u{fc}cher.example/\u{fc}", "https://xn--bcher-kva.example/%C3%BC"),
            ("https://a\u{3002}example/", "https://a.example/"),
            ("https://1%32%37.1/", "https://127.0.0.1/"),
            (
                "https://h/?sig=a%2Fb+c%2f%7E==&x=~!$()*,;:@/?&e=%e2%98%83",
                "https://h/?sig=a%2Fb+c%2f%7E==&x=~!$()*,;:@/?&e=%e2%98%83",
            ),
            ("https://h/a%2Fb+c/~!$&'()*,;=:@", "https://h/a%2Fb+c/~!$&'()*,;=:@"),
        ] {
            assert_eq!(base.join(reference).map(|url| sent(&url)).as_deref(), Some(want), "{reference}");
        }
    }

    #[test]
    fn what_may_not_be_asked_is_no_url() {
        let base = url("https://reg.example/v2/");
        for bad in [
            "ftp://a/",
            "file:///etc/passwd",
            "data:,x",
            "https://",
            "https:///",
            "https://u:p@host/",
            "https://u@host/",
            "//u@host/",
            "https://:p@host/",
            "https://good.example@evil.example/",
            "https://a b/",
            "https://a:65536/",
            "https://a:x/",
            "https://[::1/",
            "https://[fe80::1%25eth0]/",
            "https://1.2.3.256/",
            "https://1.2.3.4.5/",
            "https://a<b/",
            "https://%00/",
            "https://a%2fb/",
        ] {
            assert_eq!((Url::parse(bad), base.join(bad)), (None, None), "{bad}");
        }
        assert_eq!(Url::parse("host/x"), None);
        for bad in
            ["", "a b", "u@a", "@a", "a/b", "a\\b", "a?b", "a#b", "a%2eb", "a\tb", ":5000", "a:b", "b\u{fc}", "[::1"]
        {
            assert_eq!(Url::of_server(bad, true), None, "{bad}");
        }
    }

    #[test]
    fn a_server_keeps_its_port_by_either_protocol() {
        for (server, https, want) in [
            ("Reg.example", true, "https://reg.example/"),
            ("reg.example:443", true, "https://reg.example/"),
            ("reg.example:443", false, "http://reg.example:443/"),
            ("reg.example:80", true, "https://reg.example:80/"),
            ("reg.example:80", false, "http://reg.example/"),
            ("a_b-c:5000", false, "http://a_b-c:5000/"),
            ("127.1:5000", false, "http://127.0.0.1:5000/"),
            ("[::1]:5000", true, "https://[::1]:5000/"),
        ] {
            assert_eq!(Url::of_server(server, https).map(|url| sent(&url)).as_deref(), Some(want), "{server}");
        }
    }

    #[test]
    fn paths_and_queries_are_set() {
        let base = url("https://a:1/x/y?z");
        assert_eq!(
            sent(&base.with_path("/v2/r/blobs/uploads/?mount=sha256%3Aab&from=a%2Fb")),
            "https://a:1/v2/r/blobs/uploads/?mount=sha256%3Aab&from=a%2Fb"
        );
        assert_eq!(sent(&base.with_path("/v2/")), "https://a:1/v2/");
        assert_eq!(sent(&base.with_query("digest=sha256%3Aab")), "https://a:1/x/y?z&digest=sha256%3Aab");
        assert_eq!(sent(&url("https://a/x?s=%2F+%2f").with_query("b")), "https://a/x?s=%2F+%2f&b");
        for bare in ["https://a/x", "https://a/x?", "https://a/x#f?g"] {
            assert_eq!(sent(&url(bare).with_query("b")), "https://a/x?b");
        }
    }

    #[test]
    fn credentials_are_for_one_origin() {
        let own = url("https://a.example/x");
        for same in ["https://A.EXAMPLE:443/y", "https://a.example:/", "https:\\\\a.example", "https://a%2Eexample/"] {
            assert!(url(same).same_origin(&own), "{same}");
        }
        for other in [
            "http://a.example/",
            "https://a.example:444/",
            "https://a.example./",
            "https://a.example.evil/",
            "https://b.example/?@a.example/",
            "https://evil.example\\@a.example/",
        ] {
            assert!(!url(other).same_origin(&own), "{other}");
        }
        assert!(!url("http://127.0.0.1:1/").same_origin(&url("http://127.0.0.1:2/")));
        assert!(url("http://127.0.0.1:1/").same_origin(&url("http://0x7f.1:1/")));
        assert!(url("http://a.example:1/").same_host(&own) && !url("https://a.example./").same_host(&own));
    }

    #[test]
    fn places_are_loopback_private_or_public() {
        let table = [
            (
                "loopback",
                "localhost LOCALHOST localhost. 127.0.0.1 127.9.9.9 127.1 0x7f000001 0x7f.1 017700000001 2130706433 [::1] [0:0::1] [::ffff:127.0.0.1] [::ffff:7f00:1] \u{ff11}27.0.0.1",
            ),
            (
                "private",
                "10.1.2.3 192.168.0.1 172.16.0.1 172.31.255.255 169.254.169.254 0xa9fea9fe 100.64.0.1 100.127.255.255 0.0.0.0 0 0.1.2.3 255.255.255.255 10.1 012.1 [::] [fd00::1] [fc00::1] [fe80::1] [febf::1] [::ffff:10.0.0.1] [::ffff:a9fe:a9fe] [::ffff:0.0.0.0] x.localhost x.localhost.",
            ),
            (
                "public",
                "8.8.8.8 172.32.0.1 100.63.255.255 100.128.0.1 11.0.0.1 [2606:4700::1] [::ffff:8.8.8.8] [fec0::1] name.invalid localhost.invalid",
            ),
        ];
        for (kind, hosts) in table {
            for host in hosts.split(' ') {
                let place = url(&format!("https://{host}/"));
                sent(&place);
                assert_eq!((place.is_loopback(), place.is_private()), (kind == "loopback", kind != "public"), "{host}");
            }
        }
        assert!(
            url("https://a.1x/").is_named() && !url("https://127.1/").is_named() && !url("https://[::1]/").is_named()
        );
    }
}
