"""An SMTP server that keeps what it gets: each message as a JSON file {from, to, subject, text, tls, user} in --keep.

--tls starttls wants STARTTLS before MAIL, --tls tls begins with it; both need --certificate and --key. With --user and --password
it wants that login. While a file named "refuse" is in --keep, every message is put off with 451.
"""

import argparse
import asyncio
import email
import email.policy
import itertools
import json
import os
import ssl

from aiosmtpd.smtp import SMTP, AuthResult

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--port", type=int, required=True)
arguments.add_argument("--keep", required=True)
arguments.add_argument("--tls", choices=["none", "starttls", "tls"], default="none")
arguments.add_argument("--certificate")
arguments.add_argument("--key")
arguments.add_argument("--user")
arguments.add_argument("--password")
options = arguments.parse_args()
numbers = itertools.count(1)


class Keeper:
    async def handle_DATA(self, server, session, envelope):
        if os.path.exists(os.path.join(options.keep, "refuse")):
            return "451 try again"
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        kept = {
            "from": envelope.mail_from,
            "sender": message["from"],
            "to": envelope.rcpt_tos,
            "subject": message["subject"],
            "text": message.get_content(),
            "tls": options.tls == "tls" or session.ssl is not None,
            "user": session.auth_data,
        }
        path = os.path.join(options.keep, f"{next(numbers):06}.json")
        with open(path + ".part", "w") as file:
            json.dump(kept, file)
        os.rename(path + ".part", path)
        return "250 kept"


def authenticate(server, session, envelope, mechanism, data):
    right = data.login == options.user.encode() and data.password == options.password.encode()
    return AuthResult(success=right, auth_data=options.user if right else None)


async def main():
    context = None
    if options.tls != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)

    def protocol():
        login = dict(authenticator=authenticate, auth_required=True, auth_require_tls=options.tls == "starttls")
        starttls = dict(tls_context=context, require_starttls=True)
        return SMTP(
            Keeper(),
            enable_SMTPUTF8=True,
            **(login if options.user else {}),
            **(starttls if options.tls == "starttls" else {}),
        )

    whole = context if options.tls == "tls" else None
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", options.port, ssl=whole)
    await server.serve_forever()


asyncio.run(main())
