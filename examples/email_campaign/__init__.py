"""Send a mail to each user who has been away for a month, over a pool of connections: a command, and a class to import.

    python -m examples.email_campaign [--users N] [--db FILE] [--smtp HOST:PORT]

    from examples.email_campaign.campaign import EmailCampaign

This module imports nothing, so that the command can say in a sentence which package is missing.

Reading order:

    campaign.py  EmailCampaign: the way of one mail, on a WorkerPool
    users.py     the users in a SQLite file: made with Faker, read in a stream
    journal.py   who got a mail is written down as it happens, many in one transaction
    mailer.py    one SMTP connection: what is sent, and what its errors mean
    report.py    the figures of a campaign, and how they are told
    errors.py    why a campaign cannot go on, in sentences

    command.py   the command line: what is asked for, and the exit status
    progress.py  how far it is, twice a second: lines, or a bar on a terminal
    server.py    an SMTP server on loopback that takes its time, and has faults on purpose
    faults.py    which faults there are, and who meets which of them
"""
