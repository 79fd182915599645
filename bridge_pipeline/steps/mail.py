"""Mail: which server BRIDGE_SMTP_URL names, how a message becomes a mail, and handing it over.

By the standard library: Apprise would choose the Message-ID, by which readers' programs know a mail
that came twice.
"""

import re
import smtplib
import ssl
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import parseaddr
from ipaddress import ip_address
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from bridge_pipeline.redaction import remember
from bridge_pipeline.settings import Settings

# Most servers take 25 MB or more, and base64 makes four bytes of three.
_LARGEST_ATTACHMENTS = 15_000_000
_LONGEST_SUBJECT = 180
_ADDRESS = re.compile(r"""[^@\s"(),:;<>?&\[\\\]]+@[^@\s"(),:;<>?&\[\\\]/]+""")
_PORTS = {"smtp": 25, "smtps": 465}


class NoMailServer(ValueError):
    """BRIDGE_SMTP_URL or BRIDGE_MAIL_FROM is missing or wrong; the message says how it should be."""


class MailUnreachable(RuntimeError):
    """The mail server does not answer or does not let us in: no mail can be sent now."""


class MailPostponed(RuntimeError):
    """The mail server does not take this mail now."""


class MailRefused(RuntimeError):
    """The mail server will never take this mail."""


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed over, and in whose name. `timeout` in seconds, for each answer."""

    host: str
    port: int
    tls: bool
    starttls: bool
    sender: Address
    timeout: float
    user: str = ""
    password: str = field(default="", repr=False)


def mail_server(settings: Settings) -> MailServer:
    """The server that the settings name; its password is known to `redaction` from then on.

    Raises:
        NoMailServer: they name none, or not one that can be.
    """
    if settings.smtp_url is None or not settings.mail_from:
        raise NoMailServer("no mail can be sent: set BRIDGE_SMTP_URL and BRIDGE_MAIL_FROM")
    sender = _sender(settings.mail_from)
    form = "BRIDGE_SMTP_URL must have the form smtp://user:password@host:587 or smtps://…:465"
    try:
        url = urlsplit(settings.smtp_url.get_secret_value().strip())
        port = url.port
    except ValueError:
        raise NoMailServer(form) from None
    if url.scheme not in _PORTS or not url.hostname or url.path.strip("/") or url.fragment:
        raise NoMailServer(form)
    password = unquote(url.password or "")
    remember(password)
    return MailServer(
        host=url.hostname,
        port=port or _PORTS[url.scheme],
        tls=url.scheme == "smtps",
        starttls=_starttls(url.query, url.hostname),
        sender=sender,
        timeout=settings.delivery_timeout,
        user=unquote(url.username or ""),
        password=password,
    )


def compose(
    server: MailServer,
    to: str,
    title: str,
    body: str,
    message_id: str,
    date: str,
    attachments: Sequence[Path] = (),
    answers: str | None = None,
) -> EmailMessage:
    """The mail that tells `body` and carries the files.

    Args:
        to: a bare address.
        message_id: the same whenever the same is sent again; without brackets and domain.
        answers: the `message_id` of the mail that this one follows.
    """
    mail = EmailMessage(policy=SMTP)
    mail["From"] = server.sender
    mail["To"] = Address(addr_spec=to)
    mail["Subject"] = one_line(title, _LONGEST_SUBJECT)
    mail["Date"] = date
    mail["Message-ID"] = f"<{message_id}@{server.sender.domain}>"
    if answers:
        mail["In-Reply-To"] = mail["References"] = f"<{answers}@{server.sender.domain}>"
    # So that no holiday note answers.
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    fitting, left_out = _fitting(attachments)
    notes = [f"The file {path.name} is too large for a mail and lies at the server." for path in left_out]
    mail.set_content("\n".join([body, *notes]) + "\n", charset="utf-8")
    for path in fitting:
        kind, _, subtype = (guess_type(path.name)[0] or "application/octet-stream").partition("/")
        mail.add_attachment(path.read_bytes(), maintype=kind, subtype=subtype, filename=path.name)
    return mail


def hand_over(server: MailServer, mail: EmailMessage) -> None:
    """Gives one mail to the server.

    Raises:
        MailUnreachable: no mail can be handed over now.
        MailPostponed: the server does not take this mail now.
        MailRefused: it never will.
    """
    with _session(server) as session:
        try:
            session.send_message(mail)
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(iter(error.recipients.values()))
            raise _refusal(code, text) from None
        except smtplib.SMTPSenderRefused as error:
            # That is the operator's setting, not the reader's address: it can be put right.
            raise MailUnreachable(
                f"the sender was refused: {_said(error.smtp_code, error.smtp_error)}"
            ) from None
        except smtplib.SMTPResponseException as error:
            raise _refusal(error.smtp_code, error.smtp_error) from None
        except smtplib.SMTPNotSupportedError:
            raise MailRefused("the mail server does not take addresses beyond ASCII") from None
        except (OSError, smtplib.SMTPException) as error:
            raise MailUnreachable(f"the mail server broke off: {_kind(error)}") from None


def mail_address(text: str) -> str:
    """The address in `mailto:name@host`.

    Raises:
        ValueError: it is not of that form; the message does not quote it.
    """
    address = unquote(text.strip().removeprefix("mailto:"))
    if not _ADDRESS.fullmatch(address) or not address.isprintable():
        raise ValueError("must be mailto:name@host, with one address and nothing else")
    local, _, domain = address.rpartition("@")
    try:
        # Every server takes the ASCII form of a domain beyond ASCII.
        return str(Address(addr_spec=f"{local}@{domain.encode('idna').decode()}"))
    except (UnicodeError, MessageError, ValueError, IndexError):
        raise ValueError("must be mailto:name@host; that is no address") from None


def one_line(text: str, longest: int) -> str:
    """`text` as one printable line of at most so many characters: no header can be smuggled in."""
    plain = "".join(" " if unicodedata.category(each)[0] in "CZ" else each for each in text)
    line = " ".join(plain.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _sender(text: str) -> Address:
    name, found = parseaddr(text)
    try:
        if one_line(text, len(text)) == text.strip() and "@" in found:
            return Address(display_name=name, addr_spec=found)
    except (MessageError, ValueError, IndexError):
        pass
    raise NoMailServer("BRIDGE_MAIL_FROM must have the form name@host or Name <name@host>")


def _starttls(query: str, host: str) -> bool:
    options = dict(parse_qsl(query, keep_blank_values=True))
    wanted = options.pop("starttls", "no" if _on_this_machine(host) else "yes")
    if options or wanted not in {"yes", "no"}:
        raise NoMailServer("BRIDGE_SMTP_URL knows no other option than starttls=yes and starttls=no")
    return wanted == "yes"


def _on_this_machine(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


@contextmanager
def _session(server: MailServer) -> Iterator[smtplib.SMTP]:
    """An open session; whatever keeps it from being opened keeps back all mail."""
    try:
        session = _connected(server)
    except smtplib.SMTPAuthenticationError as error:
        said = f"{error.smtp_code}"
        raise MailUnreachable(
            f"the mail server refused user and password of BRIDGE_SMTP_URL: {said}"
        ) from None
    except smtplib.SMTPNotSupportedError:
        raise MailUnreachable("the mail server offers no STARTTLS or no login; see BRIDGE_SMTP_URL") from None
    except (OSError, smtplib.SMTPException) as error:
        place = f"{server.host}:{server.port}"
        raise MailUnreachable(f"the mail server {place} cannot be reached: {_kind(error)}") from None
    try:
        yield session
    finally:
        # The mail is taken or refused by now; how they part changes nothing.
        with suppress(OSError, smtplib.SMTPException):
            session.quit()
        session.close()


def _connected(server: MailServer) -> smtplib.SMTP:
    context = ssl.create_default_context()
    # Greets with the sender's domain: looking up this machine's own name may take long and tells it.
    options = {"local_hostname": server.sender.domain, "timeout": server.timeout}
    session = (
        smtplib.SMTP_SSL(server.host, server.port, context=context, **options)
        if server.tls
        else smtplib.SMTP(server.host, server.port, **options)
    )
    try:
        if server.starttls and not server.tls:
            session.starttls(context=context)
        if server.user:
            session.login(server.user, server.password)
    except BaseException:
        session.close()
        raise
    return session


def _fitting(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    fitting, left_out, total = [], [], 0
    for path in paths:
        size = path.stat().st_size
        (fitting if total + size <= _LARGEST_ATTACHMENTS else left_out).append(path)
        total += size if path in fitting else 0
    return fitting, left_out


def _refusal(code: int, text: bytes | str) -> MailRefused | MailPostponed:
    said = _said(code, text)
    if 500 <= code < 600:
        return MailRefused(f"the mail server refused the mail: {said}")
    return MailPostponed(f"the mail server does not take the mail now: {said}")


def _said(code: int, text: bytes | str) -> str:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return one_line(f"{code} {words}", 200)


def _kind(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
