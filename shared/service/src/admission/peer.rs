//! Who is on the other side, as far as it can be told without a token.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use http::HeaderMap;

/// Where proxies say whom they call for.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// What one site has of an IPv6 address (RFC 6177).
const SITE_BITS: u8 = 64;

/// An address; with IPv6, the network of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer(IpAddr);

impl Peer {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => {
                let site = address.to_bits() & mask(SITE_BITS, 128);
                Self(Ipv6Addr::from_bits(site).into())
            }
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self(Ipv4Addr::UNSPECIFIED.into())
    }
}

/// An address, or all that begin like it: `10.1.2.3`, `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let differs = u128::from(first.to_bits() ^ address.to_bits());
                differs & mask(self.bits, 32) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()) & mask(self.bits, 128) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The first `bits` of an address of `width` bits.
fn mask(bits: u8, width: u8) -> u128 {
    let all = u128::MAX >> (128 - width);
    all & !all.checked_shr(bits.into()).unwrap_or(0)
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "it is neither an address nor a network such as 10.0.0.0/8";
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| WRONG)?;
        let first = address.to_canonical();
        let width = if first.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width).ok_or(WRONG)?,
            None => width,
        };
        Ok(Self { first, bits })
    }
}

/// The proxies whose word is taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies(pub(crate) Vec<Network>);

impl Proxies {
    pub(crate) fn have(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.has(address))
    }

    /// Whom a call is from: whoever is connected; or, where that is a proxy,
    /// whom it names, over any number of proxies. What a stranger says of others
    /// counts for nothing.
    pub(crate) fn caller(&self, connected: IpAddr, headers: &HeaderMap) -> Peer {
        let named = headers.get_all(FORWARDED_FOR).iter().rev();
        let mut named = named.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        let mut caller = connected;
        while self.have(caller) {
            let Some(next) = named.next().and_then(address) else { break };
            caller = next;
        }
        Peer::of(caller)
    }
}

/// Some proxies name the port, too.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    text.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn caller(connected: &str, lines: &[&str]) -> Peer {
        let proxies = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"];
        let proxies = Proxies(proxies.map(|network| network.parse().unwrap()).to_vec());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        proxies.caller(ip(connected), &headers)
    }

    #[test]
    fn what_a_stranger_says_of_others_is_not_believed() {
        for lines in [&[][..], &["203.0.113.9"], &["203.0.113.9, 10.0.0.1"]] {
            assert_eq!(caller("198.51.100.1", lines), Peer::of(ip("198.51.100.1")), "{lines:?}");
        }
    }

    #[test]
    fn a_proxy_is_believed_and_so_is_the_proxy_it_names() {
        for lines in [
            &["198.51.100.1"][..],
            &["203.0.113.9, 198.51.100.1"],
            &["203.0.113.9", "198.51.100.1,192.0.2.7 , 2001:db8::1"],
            &["198.51.100.1:4711, 10.1.1.1"],
            &["::ffff:198.51.100.1"],
        ] {
            assert_eq!(caller("10.9.9.9", lines), Peer::of(ip("198.51.100.1")), "{lines:?}");
        }
    }

    #[test]
    fn a_proxy_that_names_nobody_is_the_caller_itself() {
        for lines in [&[][..], &[""], &["unknown"], &["198.51.100.1, unknown"]] {
            assert_eq!(caller("10.9.9.9", lines), Peer::of(ip("10.9.9.9")), "{lines:?}");
        }
        assert_eq!(caller("10.9.9.9", &["10.1.1.1"]), Peer::of(ip("10.1.1.1")));
    }

    #[test]
    fn a_site_is_one_peer_whatever_address_it_takes() {
        let one = Peer::of(ip("2001:db8:1:2::1"));

        assert_eq!(one, Peer::of(ip("2001:db8:1:2:ffff::9")));
        assert_ne!(one, Peer::of(ip("2001:db8:1:3::1")));
        assert_eq!(Peer::of(ip("::ffff:192.0.2.1")), Peer::of(ip("192.0.2.1")));
        assert_ne!(Peer::of(ip("192.0.2.1")), Peer::of(ip("192.0.2.2")));
    }

    #[test]
    fn networks_are_read_as_they_are_written() {
        let has = |network: &str, address| network.parse::<Network>().unwrap().has(ip(address));

        assert!(has("0.0.0.0/0", "255.255.255.255") && has("::/0", "ffff::1"));
        assert!(has("192.0.2.128/25", "192.0.2.200") && !has("192.0.2.128/25", "192.0.2.1"));
        assert!(has("192.0.2.1", "::ffff:192.0.2.1") && !has("::/0", "192.0.2.1"));
        for wrong in ["", "localhost", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "::/129", "/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
