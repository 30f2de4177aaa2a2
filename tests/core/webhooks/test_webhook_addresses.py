"""Where webhooks may lead: to the public Internet, whatever a name or a URL pretends to be."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.webhooks import LOCAL, Endpoint, Tollkeeper, fact
from tollbook.core.webhooks import addresses, rules
from tollbook.core.webhooks.errors import UrlRefused
from tollbook.core.webhooks.sending import Post
from tollbook.core.webhooks.settings import WebhookSettings, WebhookSettingsUnusable, read_settings

STRICT = WebhookSettings(allow_http=True)

ADDRESSES = """
    127.0.0.1 127.255.255.254 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
    100.64.0.1 100.100.100.200 192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
    239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16 192.88.99.1 :: ::1 fe80::1 fe80::1%eth0
    fc00::1 fd00:ec2::254 ff02::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:10.0.0.1 ::7f00:1
    ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2001::1
    2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 2001:10::1 3fff::1 fec0::1 100::1 5f00::1 localhost
    1 0x7f.1
"""
FORBIDDEN = ADDRESSES.split()
PUBLIC = (
    "1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111",
    "2a00:1450:4001:80e::200e", "::ffff:8.8.8.8", "64:ff9b::808:808",
)  # fmt: skip


@pytest.mark.parametrize("address", [*FORBIDDEN, ""])
def test_an_address_that_is_not_public_is_not_reached(address: str) -> None:
    assert not addresses.may_reach(address, ())


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reached(address: str) -> None:
    assert addresses.may_reach(address, ())


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 2**32 - 1).map(
    lambda number: ipaddress.IPv6Address(0xFFFF << 32 | number)
)))  # fmt: skip
def test_whatever_may_be_reached_is_global_by_the_standard_library_too(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if addresses.may_reach(str(address), ()):
        bare = getattr(address, "ipv4_mapped", None) or address
        translated = bare in addresses.TRANSLATED if bare.version == 6 else False
        assert bare.is_global or translated
        for unwanted in ("is_multicast", "is_private", "is_loopback", "is_link_local"):
            assert not getattr(bare, unwanted)


def test_the_operator_may_allow_a_network_of_his_and_no_more_than_it() -> None:
    settings = WebhookSettings.model_validate({"allow_networks": "10.1.0.0/16, ::1/128"})
    assert addresses.may_reach("10.1.2.3", settings.allow_networks)
    assert addresses.may_reach("::1", settings.allow_networks)
    assert addresses.may_reach("::ffff:10.1.2.3", settings.allow_networks)
    assert not addresses.may_reach("10.2.0.1", settings.allow_networks)
    assert not addresses.may_reach("127.0.0.1", settings.allow_networks)


def test_an_environment_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS", "10.1.2.3/16")
    with pytest.raises(WebhookSettingsUnusable, match="TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS cannot be read"):
        read_settings()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/",
        "//example.com",         "https://", "https:///path", "https://user:secret@example.com/", "https://user@example.com/",
        "https://@example.com/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:x/",
        "https://[::1/", "https://exa mple.com/", "https://example.com/\r\nhost: x", "https://example.com/#part",
        "https://ex\u00e4mple.com/", "https://example.com\\@evil.com/", "https://ex%61mple.com/",
        "javascript:x", "https://[fe80::1%25eth0]/", "https://" + "a" * 600 + ".com/", "",
    ],
)  # fmt: skip
async def test_a_url_that_cannot_be_an_endpoint_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        rules.check_url(url, allow_http=False)


async def answer_public(_: str, __: int) -> list[str]:
    return ["93.184.215.14"]


def test_a_url_may_have_a_port_a_path_and_a_query() -> None:
    found = rules.check_url("https://Hooks.example.com:8443/in?key=a%20b", allow_http=False)
    assert found == rules.Endpoint("hooks.example.com", 8443)


def lookup_of(*answers: list[str] | Exception) -> Callable[[str, int], Awaitable[list[str]]]:
    """A name server that answers differently each time, and then as the last time."""
    left = list(answers)

    async def look_up(_: str, __: int) -> list[str]:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return look_up


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"]],
        [["93.184.215.14", "10.0.0.1"]],
        [[]],
        [OSError("no such name")],
        [["::ffff:10.0.0.1"]],
    ],
    ids=["private", "one of two private", "nothing", "no name", "mapped"],
)
async def test_a_new_url_is_looked_at_and_refused_in_one_sentence_whatever_is_behind_it(
    answers: list[list[str] | Exception],
) -> None:
    async with Post(STRICT, lookup=lookup_of(*answers)) as post:
        with pytest.raises(UrlRefused, match="does not lead to a public address") as refused:
            await post.check("https://hooks.example.com/in")
    assert "10.0.0.1" not in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


async def test_a_new_url_that_leads_to_a_public_address_is_taken() -> None:
    async with Post(STRICT, lookup=answer_public) as post:
        await post.check("https://hooks.example.com/in")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"]
)
async def test_no_spelling_of_this_machine_is_connected_to(endpoint: Endpoint, host: str) -> None:
    async with Post(STRICT) as post:
        with pytest.raises(UrlRefused):
            await post.check(endpoint.url(host=host))
        outcome = await post.send(endpoint.url(host=host), b"{}", {})
    assert outcome.error in ("the address is not public", "the URL cannot be read")
    assert endpoint.connections == 0


async def test_a_name_that_was_public_when_it_was_checked_is_refused_when_it_leads_home_later(
    endpoint: Endpoint,
) -> None:
    rebinding = lookup_of(["93.184.215.14"], ["127.0.0.1"])
    async with Post(STRICT, lookup=rebinding) as post:
        url = endpoint.url(host="hooks.example.com")
        await post.check(url)
        outcome = await post.send(url, b"{}", {})
    assert outcome.error == "the address is not public"
    assert endpoint.connections == 0


async def test_a_webhook_made_by_hand_for_a_private_address_is_told_nothing(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    await keeper.subscribe("payments.*", url=f"http://user:secret@127.0.0.1:{keeper.endpoint.port}/")
    await keeper.happen(fact("a"))
    async with Post(WebhookSettings(allow_http=True)) as keeper.post:
        await keeper.tell(keeper.make_sender())
    assert keeper.endpoint.connections == 0
    errors = [row[0] for row in await keeper.query("SELECT error FROM settlement.webhook_attempts")]
    assert "the address is not public" in errors
    assert not any("secret" in error for error in errors)


async def test_no_proxy_of_the_environment_is_used(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with Post(LOCAL) as post:
        outcome = await post.send(endpoint.url(), b"{}", {})
    assert outcome.taken


async def test_a_name_whose_server_is_silent_holds_up_no_other(endpoint: Endpoint) -> None:
    gave_up = asyncio.Event()

    async def look_up(host: str, _: int) -> list[str]:
        if host == "silent.example":
            await gave_up.wait()
            raise OSError(host)
        return ["127.0.0.1"]

    silent = endpoint.url(host="silent.example")
    async with Post(LOCAL, lookup=look_up) as post:
        waiting = [asyncio.create_task(post.send(silent, b"{}", {})) for _ in range(50)]
        assert (await post.send(endpoint.url(host="good.example"), b"{}", {})).taken
        assert not any(one.done() for one in waiting)
        names = post.names._under_way  # pyright: ignore[reportPrivateUsage]
        assert len(names) == 1, "one look-up a name at a time"
        gave_up.set()
        assert not any(one.taken for one in await asyncio.gather(*waiting))
    gave_up.clear()
    async with Post(LOCAL, lookup=look_up, seconds_max=0.2) as post:
        assert (await post.send(silent, b"{}", {})).error == "no answer within 15 s"
