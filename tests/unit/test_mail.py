"""Mail: which servers and addresses are accepted, and that nothing can be smuggled into a header."""

import email
from email.policy import default

import pytest

from bridge_pipeline import redaction, settings
from bridge_pipeline.steps.mail import NoMailServer, compose, mail_address, mail_server

PASSWORD = "p@ss/w0rd-canary"


def server(url="smtp://127.0.0.1", sender="Project Bridge <bridge@acme.example>"):
    return mail_server(settings.load(smtp_url=url, mail_from=sender))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("smtp://127.0.0.1:2525", ("127.0.0.1", 2525, False, False)),
        ("smtp://localhost", ("localhost", 25, False, False)),
        ("smtp://[::1]:25", ("::1", 25, False, False)),
        ("smtp://127.0.0.1?starttls=yes", ("127.0.0.1", 25, False, True)),
        ("smtp://mail.example.com:587", ("mail.example.com", 587, False, True)),
        ("smtp://10.0.0.1?starttls=no", ("10.0.0.1", 25, False, False)),
        ("smtps://mail.example.com", ("mail.example.com", 465, True, True)),
    ],
)
def test_a_mail_server_off_this_machine_is_talked_to_in_secret_unless_told_otherwise(url, found):
    read = server(url)
    assert (read.host, read.port, read.tls, read.starttls) == found


def test_user_and_password_are_unquoted_and_never_shown():
    read = server("smtp://ann%40x:p%40ss%2Fw0rd-canary@mail.example.com")
    assert (read.user, read.password) == ("ann@x", PASSWORD)
    assert "canary" not in repr(read)
    assert "canary" not in redaction.redact(f"535 no such {PASSWORD}")


@pytest.mark.parametrize(
    ("url", "sender"),
    [
        (None, "a@b.example"),
        ("smtp://h", None),
        ("smtp://h", "nobody"),
        ("smtp://h", "A <a@b.example>\nBcc: c@d.example"),
        ("https://h", "a@b.example"),
        ("smtp://", "a@b.example"),
        ("smtp://h:port", "a@b.example"),
        ("smtp://h/path", "a@b.example"),
        ("smtp://h?tls=no", "a@b.example"),
        ("smtp://h?starttls=maybe", "a@b.example"),
    ],
)
def test_a_server_or_sender_that_cannot_be_is_refused_in_words(url, sender):
    with pytest.raises(NoMailServer, match="BRIDGE_"):
        mail_server(settings.load(smtp_url=url, mail_from=sender))


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("mailto:maria@acme.example", "maria@acme.example"),
        (" mailto:maria+desk@acme.example ", "maria+desk@acme.example"),
        ("mailto:maria@bücher.example", "maria@xn--bcher-kva.example"),
        ("mailto:root@localhost", "root@localhost"),
    ],
)
def test_an_address_is_read(written, address):
    assert mail_address(written) == address


@pytest.mark.parametrize(
    "written",
    [
        "mailto:",
        "mailto:canary",
        "mailto:canary@",
        "mailto:@canary.example",
        "mailto:canary@a.example,b@c.example",
        "mailto:canary@a.example?cc=b@c.example",
        "mailto:Canary <a@b.example>",
        "mailto:canary%0d%0aBcc:x@a.example",
        "mailto:canary@a.example\nX: y",
        "mailto:canary@a..example",
        "mailto:canary\u2028@a.example",
    ],
)
def test_what_is_no_single_address_is_refused_and_not_quoted(written):
    with pytest.raises(ValueError, match="mailto:name@host") as caught:
        mail_address(written)
    assert "canary" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("title", "subject"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("one\r\nBcc: eve@evil.example\r\n\r\nbody", "one Bcc: eve@evil.example body"),
        ("nul\x00 tab\t line\u2028 bell\x07", "nul tab line bell"),
        ("Bücher 本 🎫", "Bücher 本 🎫"),
        ("x" * 500, "x" * 179 + "…"),
        ("ü" * 500, "ü" * 179 + "…"),
    ],
)
def test_a_title_is_a_subject_and_nothing_else(title, subject, tmp_path):
    report = tmp_path / "2024-03-01.html"
    report.write_bytes(b"<p>" + b"long " * 2000 + "ü\r\n\n".encode())
    body = "Grüße\n" + "y" * 3000 + "\n.\nFrom here"
    mail = compose(
        server(), "maria@acme.example", title, body, "bridge.1", "Fri, 01 Mar 2024 00:00:00 +0000", [report]
    )
    sent = mail.as_bytes()
    assert max(map(len, sent.split(b"\r\n"))) <= 998
    read = email.message_from_bytes(sent, policy=default)
    assert read["Subject"] == subject
    assert read["To"] == "maria@acme.example"
    assert read["Bcc"] is None
    assert read["Message-ID"] == "<bridge.1@acme.example>"
    assert read.get_body(("plain",)).get_content().splitlines() == body.splitlines()
    (attached,) = read.iter_attachments()
    assert attached.get_content_type() == "text/html"
    assert attached.get_payload(decode=True) == report.read_bytes()


def test_files_too_large_for_a_mail_are_left_out_and_named(tmp_path):
    small, large = tmp_path / "report.html", tmp_path / "rejected.xlsx"
    small.write_text("report")
    large.touch()
    large.open("r+b").truncate(20_000_000)
    mail = compose(server(), "a@b.example", "t", "b", "1", "Fri, 01 Mar 2024 00:00:00 +0000", [small, large])
    assert [part.get_filename() for part in mail.iter_attachments()] == ["report.html"]
    assert "rejected.xlsx" in mail.get_body(("plain",)).get_content()
