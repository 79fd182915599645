"""What keeps a source from being read, by name, and what is to be done about it.

`problem_of` looks at an error of the connection, `refusal` at an answer; `advice` has the words.
"""

import errno
import os
import socket
import ssl
from collections.abc import Iterable
from typing import Literal

import httpx

Problem = Literal[
    "dns",
    "refused",
    "unreachable",
    "timeout",
    "tls_expired",
    "tls_not_yet_valid",
    "tls_wrong_host",
    "tls_self_signed",
    "tls_unknown_authority",
    "tls_certificate",
    "tls",
    "broken_answer",
    "proxy",
    "credentials",
    "scope",
    "plan",
    "not_found",
    "not_this_api",
    "redirect",
    "private_address",
    "plain_http",
    "address",
    "throttled",
    "server",
    "other",
]
# These say nothing of whether the connection is right: the source may be away, or this machine.
PASSING = frozenset({"dns", "refused", "unreachable", "timeout", "broken_answer", "throttled", "server"})
# These are so for every entity: asking for the next one would tell nothing new.
OF_THE_WHOLE = PASSING | {"credentials", "private_address", "plain_http", "address", "proxy"}

# OpenSSL's numbers of why a certificate does not hold (x509_vfy.h).
_CERTIFICATES: dict[int, Problem] = {
    9: "tls_not_yet_valid",
    10: "tls_expired",
    18: "tls_self_signed",
    19: "tls_unknown_authority",
    20: "tls_unknown_authority",
    21: "tls_unknown_authority",
    62: "tls_wrong_host",
    64: "tls_wrong_host",
}
_NO_WAY = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
_STATUS: dict[int, Problem] = {
    401: "credentials",
    402: "plan",
    403: "scope",
    404: "not_found",
    407: "proxy",
    429: "throttled",
}
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_ADVICE: dict[Problem, str] = {
    "dns": "the server's name is not known: check base_url for a slip, and that this machine resolves names",
    "refused": "nothing listens at that address and port: check base_url, and whether the source is up",
    "unreachable": "no way leads from this machine to that address: check its network and base_url",
    "timeout": "no answer came in time: check that a firewall lets this machine through to the source",
    "tls_expired": "the server's certificate has expired: whoever runs it must renew it",
    "tls_not_yet_valid": "the server's certificate is not valid yet: check this machine's clock, then theirs",
    "tls_wrong_host": "the server's certificate is for another host: base_url must have the name that is "
    "in the certificate",
    "tls_self_signed": "the server signed its certificate itself: it needs one of a known authority, or let "
    "SSL_CERT_FILE name a file with this one",
    "tls_unknown_authority": "the certificate's authority is not known here, as where a proxy looks into "
    "TLS: let SSL_CERT_FILE name a file with the authority's certificate",
    "tls_certificate": "the server's certificate breaks the rules for certificates, as it says: whoever "
    "runs it must have it made anew; from 3.13 on Python refuses what it let pass before",
    "tls": "no TLS could be agreed on: check that base_url has the port of https",
    "broken_answer": "the connection broke off before the answer was whole",
    "proxy": "a proxy asks for a login; none is used for sources, and it is in the way",
    "credentials": "the credential was not accepted: check that it is the right one, whole and still valid",
    "scope": "the credential is valid and may not read this: give its user the permission, or leave the "
    "entity out of `entities`",
    "plan": "the account's plan does not have this: leave the entity out of `entities`, or change the plan",
    "not_found": "there is nothing at this address: check base_url, and that the account has this entity",
    "not_this_api": "what answers is not this API, perhaps a login page or another product: check base_url "
    "and the connector",
    "redirect": "it leads to another address, which is never followed: put the final address into base_url",
    "private_address": "the address is not public: set allow_private: true in config if that is meant",
    "plain_http": "plain http would show the credential to everyone on the way: use https, or set "
    "allow_private: true in config for a test server",
    "address": "base_url is no address: write it as https://host",
    "throttled": "the source asks to wait: its limit of requests is used up; try again later",
    "server": "the source has a failure of its own: try again later",
    "other": "see what it says",
}


def problem_of(error: BaseException) -> Problem:
    """What an error of a connection comes from, by the errors that caused it."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _CERTIFICATES.get(cause.verify_code, "tls_certificate")
        if isinstance(cause, ssl.SSLError):
            return "tls"
        if isinstance(cause, socket.gaierror | UnicodeError):
            return "dns"
        if isinstance(cause, ConnectionRefusedError):
            return "refused"
        if isinstance(cause, OSError) and cause.errno in _NO_WAY:
            return "unreachable"
    return "timeout" if isinstance(error, httpx.TimeoutException) else "broken_answer"


def refusal(status: int) -> Problem:
    """What an answer with an error status says."""
    if 300 <= status < 400:
        return "redirect"
    return _STATUS.get(status, "server" if status >= 500 else "other")


def narrowed(problem: Problem, text: str, plan_words: Iterable[str]) -> Problem:
    """`plan` for a refusal in which the vendor speaks of the plan."""
    said = text.lower()
    return "plan" if problem == "scope" and any(word.lower() in said for word in plan_words) else problem


def advice(problem: Problem) -> str:
    """What a problem means and what to do, in a sentence."""
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    if proxy and problem in ("dns", "refused", "unreachable", "timeout"):
        return f"{_ADVICE[problem]}; {proxy} is set here, and no proxy is used for sources"
    return _ADVICE[problem]


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
