"""Email every user who has been away for a month, over a pool of connections: a command, and a class to import.

    python -m examples.email_campaign [--users N] [--db FILE] [--smtp HOST:PORT]

    from examples.email_campaign.campaign import EmailCampaign

This module imports nothing, so the command can report a missing package in one line.

Reading order:

    campaign.py      EmailCampaign: sends each mail in a WorkerPool
    users.py         the users in a SQLite file: created with Faker, read as a stream
    journal.py       records each delivery as it happens, many in one transaction
    mail.py          what a mail looks like: its headers, and the text of a template
    addresses.py     checks e-mail addresses
    connection.py    one SMTP connection: sends a mail step by step, with a time limit for each
    relay.py         how to connect to the SMTP server: TLS and login
    replies.py       what the replies of a server mean for the mail, the connection and the campaign
    outage.py        notices that the server has been out of order for too long
    refusals.py      notices that the server refuses mail after mail with the same reply
    dead_letters.py  the mails that failed permanently
    report.py        the figures of a campaign
    errors.py        the reasons for which a campaign stops

    command.py       the command: messages and exit status
    options.py       its arguments
    question.py      asks a question on the terminal
    server.py        an SMTP server on loopback with latency and deliberate faults
    faults.py        the kinds of faults, and which mail gets which
"""
