"""Email every user who has been away for a month, over a pool of connections: a command, and a class to import.

    python -m examples.email_campaign [--users N] [--db FILE] [--smtp HOST:PORT]

    from examples.email_campaign.campaign import EmailCampaign

This module imports nothing, so the command can report a missing package in one line.

Reading order:

    campaign.py  EmailCampaign: sends each mail in a WorkerPool
    users.py     the users in a SQLite file: created with Faker, read as a stream
    journal.py   records each delivery as it happens, many in one transaction
    mailer.py    one SMTP connection, and the meaning of its errors
    report.py    the figures of a campaign
    errors.py    the reasons for which a campaign stops

    command.py   the command line: arguments and exit status
    progress.py  shows the progress twice a second: lines, or a bar on a terminal
    server.py    an SMTP server on loopback with latency and deliberate faults
    faults.py    the kinds of faults, and which mail gets which
"""
