"""The plots of a report, as plotly specifications that follow the page's light or dark theme."""
