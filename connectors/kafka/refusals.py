"""Why a broker lets nobody in: TLS and SASL settings that do not fit, told apart from a broker that is away.

aiokafka's client logs what each address said and then raises one error that names none of it, and tries for
ever what no try will mend. So once a connection has failed, it is made once more here, by hand, and its error
read. Not here: waiting for brokers (`cluster`). Nothing here names a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.admin import SaslHandShakeRequest

from connectors.kafka.settings import KafkaSettings
from engine.errors import ExternalError

#: How long one question to one address may take, and at how many addresses is asked.
QUESTION_SECONDS_MAX = 5.0
ADDRESSES_MAX = 3

#: What a connection takes of the arguments that clients take.
_ARGUMENTS = ("client_id", "security_protocol", "ssl_context", "sasl_mechanism", "sasl_plain_username",
              "sasl_plain_password")  # fmt: skip

_CREDENTIALS = "check kafka.sasl_username, kafka.sasl_mechanism and kafka.sasl_password (or HEADRACE_SASL_PASSWORD)"


async def refusal(settings: KafkaSettings, addresses: Sequence[tuple[str, int]]) -> ExternalError | None:
    """What no retry mends about the connections to ``addresses``; None where a later try may succeed."""
    for host, port in addresses[:ADDRESSES_MAX]:
        try:
            async with asyncio.timeout(QUESTION_SECONDS_MAX):
                found = await _refusal_at(settings, host, port)
        except TimeoutError:
            continue
        if found is not None:
            return found
    return None


async def _refusal_at(settings: KafkaSettings, host: str, port: int) -> ExternalError | None:
    where = f"{host}:{port}"
    protocol = settings.security_protocol
    arguments = {key: value for key, value in settings.client_arguments().items() if key in _ARGUMENTS}
    try:
        connection = await create_conn(host, port, request_timeout_ms=int(QUESTION_SECONDS_MAX * 1000), **arguments)
    except (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError) as error:
        user = f"user {settings.sasl_username!r}, {settings.sasl_mechanism}"
        return ExternalError(f"{where} refuses {user}: {_text(error)}", hint=_CREDENTIALS)
    except errors.UnsupportedSaslMechanismError:
        taken = ", ".join(await _mechanisms(settings, host, port)) or "others"
        return ExternalError(
            f"{where} does not take kafka.sasl_mechanism = {settings.sasl_mechanism!r}; it takes {taken}"
        )
    except errors.IllegalSaslStateError:
        return _wrong_protocol(where, protocol, "it asks for no password", protocol.removeprefix("SASL_"))
    except ssl.SSLCertVerificationError as error:
        return ExternalError(
            f"{where} shows a certificate that is not trusted: {error.verify_message}",
            hint="kafka.ssl_ca_file names the file of the authority that signed it",
        )
    except (errors.KafkaError, OSError) as error:
        alert = error if isinstance(error, ssl.SSLError) else error.__cause__
        if isinstance(alert, ssl.SSLError) and "ALERT" in (alert.reason or ""):
            return _alert(where, alert, settings)
        return await _other_transport(settings, host, port)
    try:
        offered = await _asked_for_sasl(connection)
    finally:
        connection.close()
    if offered and not protocol.startswith("SASL_"):
        fitting = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT"
        return _wrong_protocol(where, protocol, f"it asks for a password, by {', '.join(offered)}", fitting)
    return None


def _alert(where: str, alert: ssl.SSLError, settings: KafkaSettings) -> ExternalError:
    """The broker ended the TLS handshake with an alert, nearly always about the client's certificate."""
    said = (alert.reason or "").lower().replace("_", " ")
    if settings.ssl_cert_file is None:
        return ExternalError(
            f"{where} refuses a client without a certificate ({said})",
            hint="kafka.ssl_cert_file and kafka.ssl_key_file name one that the broker trusts",
        )
    return ExternalError(
        f"{where} refuses the client certificate {settings.ssl_cert_file} ({said})",
        hint="it has to be signed by an authority that the broker trusts, and be valid now",
    )


async def _other_transport(settings: KafkaSettings, host: str, port: int) -> ExternalError | None:
    """The connection broke before Kafka spoke: is one side with and the other without TLS?"""
    where, protocol = f"{host}:{port}", settings.security_protocol
    if protocol.endswith("SSL"):
        with contextlib.suppress(errors.KafkaError, OSError):
            (await create_conn(host, port, request_timeout_ms=int(QUESTION_SECONDS_MAX * 1000))).close()
            return _wrong_protocol(where, protocol, "it speaks no TLS", protocol.replace("SSL", "PLAINTEXT"))
        return None
    if await _speaks_tls(host, port):
        return _wrong_protocol(where, protocol, "it speaks TLS", protocol.replace("PLAINTEXT", "SSL"))
    return None


async def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    # Nothing is sent but a greeting: whose certificate it is does not matter here.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    writer.transport.abort()
    return True


async def _mechanisms(settings: KafkaSettings, host: str, port: int) -> list[str]:
    arguments = settings.client_arguments()
    with contextlib.suppress(errors.KafkaError, OSError):
        connection = await create_conn(
            host,
            port,
            request_timeout_ms=int(QUESTION_SECONDS_MAX * 1000),
            security_protocol=settings.security_protocol.removeprefix("SASL_"),
            ssl_context=arguments.get("ssl_context"),
        )
        try:
            return await _asked_for_sasl(connection)
        finally:
            connection.close()
    return []


async def _asked_for_sasl(connection: AIOKafkaConnection) -> list[str]:
    """The SASL mechanisms that the listener takes; none where it asks for no SASL."""
    try:
        # A mechanism that none has: what is refused for it lists what there is.
        answer = await connection.send(SaslHandShakeRequest("NONE"))
    except (errors.KafkaError, OSError):
        return []
    return sorted(answer.enabled_mechanisms or [])


def _wrong_protocol(where: str, protocol: str, why: str, fitting: str) -> ExternalError:
    return ExternalError(
        f"{where} cannot be reached with kafka.security_protocol = {protocol!r}: {why}",
        hint=f'security_protocol = "{fitting}" may be what it takes',
    )


def _text(error: BaseException) -> str:
    return str(error.args[0]) if error.args and error.args[0] else type(error).__name__
