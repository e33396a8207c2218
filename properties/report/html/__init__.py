"""A report as one self-contained page: opens offline, in light and dark, with mouse or keyboard.

view        what the page shows, from the JSON of `moeracle check` (docs/json.md), of one run or many
heat        where illegal elements lie, as SVG
charts      how close to the bound errors came, and how that went from run to run, as SVG
page        the template, its style and script put together; nothing is loaded from anywhere
"""
