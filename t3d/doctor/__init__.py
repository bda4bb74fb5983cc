"""Says before a command is run whether this machine, checkpoint, data and configuration will run it.

A check is a small function that yields findings; `examine` guards it, because the patient may be broken anywhere, and
`render` makes the page.  Nothing here imports torch before a check does: a machine without a working one gets a page.
"""
