"""Campaigns: a hunt of any length over many processes or machines, whose finished cases nothing can lose.

A campaign is a folder that every worker sees. `plan` says which cases there are, `journal` keeps what was judged,
`worker` judges chunk after chunk, `campaign` starts workers here or on Ray, `summary` reads what they wrote; `run` and
`app` are the command.
"""
