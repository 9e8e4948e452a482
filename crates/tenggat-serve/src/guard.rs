//! Who may ask for what.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;

use axum::http::{HeaderMap, header};

/// Header of the token.
const HEADER: &str = "x-tenggat-token";

/// A secret that was made when the server started.
#[derive(Debug)]
pub(crate) struct Token(String);

impl Token {
    /// 128 bits from the system.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Token(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not tell where a guess is wrong.
    fn is(&self, guess: &[u8]) -> bool {
        let own = self.0.as_bytes();
        own.len() == guess.len() && own.iter().zip(guess).fold(0, |d, (a, b)| d | (a ^ b)) == 0
    }
}

/// Whether a request names us as its host. A page of another site whose name was made to lead here does not.
pub(crate) fn is_for_us(headers: &HeaderMap, address: SocketAddr) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.parse().is_ok_and(|ip: std::net::IpAddr| {
            // Whoever listens everywhere does not know all names of the machine, but addresses are no names.
            ip == address.ip() || ip.is_loopback() || address.ip().is_unspecified()
        })
}

/// Why a request that changes something is refused, if it is.
pub(crate) fn refusal(headers: &HeaderMap, token: &Token) -> Option<&'static str> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let own = text(header::HOST).map(|host| format!("http://{host}"));
    if text(header::ORIGIN).is_some_and(|origin| Some(origin) != own.as_deref()) {
        return Some("requests from other sites are refused");
    }
    if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Some("requests from other sites are refused");
    }
    let guess = headers.get(HEADER).map_or(&b""[..], |guess| guess.as_bytes());
    (!token.is(guess))
        .then_some("the token is missing or wrong; open the address that `tenggat serve` printed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_our_own_names_are_served() {
        let address = "127.0.0.1:8675".parse().unwrap();
        for host in ["127.0.0.1:8675", "localhost:8675", "localhost", "[::1]:8675"] {
            assert!(is_for_us(&headers(&[("host", host)]), address), "{host}");
        }
        for host in ["evil.example:8675", "localhost.evil.example", "10.0.0.1:8675", ""] {
            assert!(!is_for_us(&headers(&[("host", host)]), address), "{host}");
        }
        assert!(!is_for_us(&HeaderMap::new(), address));
        assert!(is_for_us(&headers(&[("host", "10.0.0.1:8675")]), "0.0.0.0:8675".parse().unwrap()));
    }

    #[test]
    fn changes_need_the_token_and_our_own_page() {
        let token = Token::random().unwrap();
        let with = |pairs: &[(&'static str, &str)]| {
            let all = [&[("host", "127.0.0.1:1"), ("x-tenggat-token", token.text())][..], pairs].concat();
            refusal(&headers(&all), &token)
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("origin", "http://127.0.0.1:1"), ("sec-fetch-site", "same-origin")]), None);
        for origin in ["http://evil.example", "null", "http://127.0.0.1:2", "https://127.0.0.1:1"] {
            assert!(with(&[("origin", origin)]).is_some(), "{origin}");
        }
        assert!(with(&[("sec-fetch-site", "cross-site")]).is_some());
        for guess in ["", "0", &"0".repeat(32)] {
            assert!(refusal(&headers(&[("host", "a"), ("x-tenggat-token", guess)]), &token).is_some());
        }
        assert_ne!(token.text(), Token::random().unwrap().text());
    }
}
