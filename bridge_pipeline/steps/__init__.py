"""One module per arrow of the flow: extract, land, check, load, audit, …"""
